// The product of one row of activations (or of M rows, each by itself) with 4-bit weights. See dot_4bit.h.
#include "dot_4bit.h"

namespace bnb {

// BITS is the size of T in bits; the rest as in dot_4bit.
template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int BITS, int ROWS, int STEPS>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kgemv_4bit_inference(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                     const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype, i32 data_type,
                     T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  static_assert(sizeof(T) * 8 == BITS);
  dot_4bit<T, GROUP_SIZE, NUM_PER_THREAD, SUBG_SIZE, ROWS, STEPS, 1>(M, N, K, A, B,
                                                                     {absmax, absmax_8bit, absmax_code, absmax_offset}, bias,
                                                                     datatype, data_type, out, lda, ldb, ldc, tiles_m, shift);
}

}  // namespace bnb
