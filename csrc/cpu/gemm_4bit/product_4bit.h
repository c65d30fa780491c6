// What gemm_4bit and gemv_4bit on CPUs share: the problem, and the scales of blocks.
#pragma once
#include "../cpu.h"

namespace bnb::cpu {

// out[m, n] = A[m, k] B[n, k]^T (+ bias[n]). Row r of B begins at element r * ldb of its codes.
struct Product {
  int dtype;
  int64_t m, n, k;
  const void* A;
  const uint8_t* B;
  BnbStatistics statistics;
  const float* code;  // 16 values
  void* out;
  int64_t lda, ldb, ldc, blocksize;
  const void* bias;
  int shift;         // blocksize = 2^shift
  bool rows_aligned;  // every row of B begins where a block does, and at a whole byte
};

// out[i] = the scale of block first + i, as CUDA computes it: nested ones are rounded after the product.
inline void scales_of(const BnbStatistics& statistics, int64_t first, int64_t count, float* __restrict out) {
  if (!statistics.absmax_8bit) {
    for (int64_t i = 0; i < count; i++) out[i] = statistics.absmax[first + i];
    return;
  }
  const float* const code = statistics.absmax_code;
  const uint8_t* const codes = statistics.absmax_8bit + first;
#pragma GCC unroll 8
  for (int64_t i = 0; i < count; i++) out[i] = code[codes[i]];
  const float offset = *statistics.absmax_offset;
  for (int64_t i = 0; i < count;) {
    const float outer = statistics.absmax[(first + i) >> 8];
    const int64_t end = std::min(count, (((first + i) >> 8) + 1) * 256 - first);
    for (; i < end; i++) out[i] = out[i] * outer + offset;
  }
}

// Memory that a thread keeps from call to call, aligned to 64 bytes.
class Scratch {
 public:
  ~Scratch();
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* bytes(int64_t size);
  float* floats(int64_t count) { return static_cast<float*>(bytes(count * 4)); }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace bnb::cpu
