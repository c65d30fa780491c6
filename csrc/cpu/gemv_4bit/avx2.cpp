#include <immintrin.h>

#include "gemv_4bit.h"
#include "words.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx2.h"
#include "avx2_rows.h"

inline __attribute__((always_inline)) __m256i dot_words(__m256i sums, __m256i b, const __m256i_u& a) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(b, a));
}
#include "avx2_words.h"

// 32 bytes of codes become 8 vectors: of high nibbles (even elements), then of low ones, 4 each as Planes has them. x is
// [k / 64][rows of A][vector][lane].
constexpr int element_of(int vector, int lane) { return 2 * (vector % 4 * 4 + lane % 4 + lane / 4 * 16) + vector / 4; }

template <class T>
void prepare_as(const Product& p, float* x) {
  for (int64_t k = 0; k < p.k; k += kStep)
    for (int64_t m = 0; m < p.m; m++, x += kStep) {
      const T* const in = static_cast<const T*>(p.A) + m * p.lda + k;
      alignas(32) float values[kStep];
      for (int64_t i = 0; i < kStep; i += 8) _mm256_store_ps(values + i, load_some(in + i, std::max<int64_t>(0, p.k - k - i)));
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) x[8 * j + i] = values[element_of(j, i)];
    }
}
bool prepare(const Product& p, float* x) {
  with_dtype(p.dtype, [&](auto zero) { prepare_as<decltype(zero)>(p, x); });
  return true;
}

struct Floats {
  static constexpr int64_t kFloats = kStep;
  Planes planes;
  explicit Floats(const float* code) : planes(code) {}

  template <int M>
  [[gnu::always_inline]] void operator()(__m256i codes, const float* x, __m256 (&part)[M]) const {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m256 values[4];
      half ? planes.low(codes, values) : planes.high(codes, values);
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++)
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
          const __m256 a = _mm256_loadu_ps(x + m * kStep + 8 * (4 * half + q));
          part[m] = half || q ? _mm256_fmadd_ps(values[q], a, part[m]) : _mm256_mul_ps(values[q], a);
        }
    }
  }
};

template <int M>
void run_rows(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.dtype == BNB_FLOAT32) return run_as<M, float, Floats>(p, x, first, last);
  if (p.dtype == BNB_FLOAT16) return run_as<M, half, Floats>(p, x, first, last);
  run_as<M, bfloat16, Floats>(p, x, first, last);
}

void run(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr decltype(&run_rows<1>) kRuns[] = {nullptr, &run_rows<1>, &run_rows<2>, &run_rows<3>, &run_rows<4>};
  kRuns[p.m](p, x, first, last);
}

// Of one row: without AVX-VNNI products of words take two instructions, for two rows more than look-ups save.
const Implementation words{gemv_4bit_words, Isa::avx2, Gemv{1, 1, kStep, Words::kFloats, &prepare_words, &run_words_of<1>}};
const Implementation dots{gemv_4bit, Isa::avx2, Gemv{6, 4, kStep, Floats::kFloats, &prepare, &run}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
