// The product of a few rows of activations with 4-bit weights, which are read once for TILE_M rows. See dot_4bit.h.
#include "dot_4bit.h"

namespace bnb {

template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int ROWS, int STEPS, int TILE_M>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kgemm_4bit_inference(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                     const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                     i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  dot_4bit<T, GROUP_SIZE, NUM_PER_THREAD, SUBG_SIZE, ROWS, STEPS, TILE_M>(
      M, N, K, A, B, {absmax, absmax_8bit, absmax_code, absmax_offset}, bias, datatype, data_type, out, lda, ldb, ldc,
      tiles_m, shift);
}

}  // namespace bnb
