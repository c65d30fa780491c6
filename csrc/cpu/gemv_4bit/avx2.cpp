#include <immintrin.h>

#include "gemv_4bit.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx2.h"

// 32 bytes of codes become 8 vectors: of high nibbles (even elements), then of low ones, 4 each as Planes has them. x is
// [k / 64][rows of A][vector][lane].
constexpr int64_t kStep = 64;
constexpr int64_t kSpan = 2048;

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
void prepare(const Product& p, float* x) {
  if (p.dtype == BNB_FLOAT32) return prepare_as<float>(p, x);
  if (p.dtype == BNB_FLOAT16) return prepare_as<half>(p, x);
  prepare_as<bfloat16>(p, x);
}

float sum_of(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

template <int M, class T>
void row_of(const Product& p, const Planes& planes, const float* x, int64_t row) {
  const bool nested = p.statistics.absmax_8bit;
  __m256 sums[M];
  for (int m = 0; m < M; m++) sums[m] = _mm256_setzero_ps();
  for (int64_t from = 0; from < p.k; from += kSpan) {
    const int64_t until = std::min(p.k, from + kSpan), at = row * p.ldb + from, block = at >> p.shift;
    float made[kSpan / 32];
    const float* scales = p.statistics.absmax + block;
    if (nested) scales_of(p.statistics, block, ((at + until - from - 1) >> p.shift) - block + 1, made), scales = made;
    const uint8_t* const b = p.B + at / 2;
    const int64_t skipped = from & (p.blocksize - 1);  // of a block that began before
    for (int64_t k = 0; k < until - from; k += kStep) {
      const int64_t left = until - from - k;
      const uint8_t* const its = b + k / 2;
      _mm_prefetch(reinterpret_cast<const char*>(its + 1024), _MM_HINT_T0);
      const __m256i codes = left >= kStep ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(its))
                                          : _mm256_maskload_epi32(reinterpret_cast<const int*>(its), first_dwords(left / 8));
      const float* const at_x = x + (from + k) * M;
      __m256 part[M];
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        __m256 values[4];
        half ? planes.low(codes, values) : planes.high(codes, values);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++)
#pragma GCC unroll 4
          for (int m = 0; m < M; m++) {
            const __m256 a = _mm256_loadu_ps(at_x + m * kStep + 8 * (4 * half + q));
            part[m] = half || q ? _mm256_fmadd_ps(values[q], a, part[m]) : _mm256_mul_ps(values[q], a);
          }
      }
      __m256 scale = _mm256_set1_ps(scales[(skipped + k) >> p.shift]);
      if (p.blocksize == 32) {
        const float* const two = scales + k / 32;
        scale = _mm256_set_m128(left > 32 ? _mm_set1_ps(two[1]) : _mm_setzero_ps(), _mm_set1_ps(two[0]));
      }
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) sums[m] = _mm256_fmadd_ps(part[m], scale, sums[m]);
    }
  }
  const T* const bias = static_cast<const T*>(p.bias);
  for (int m = 0; m < M; m++)
    static_cast<T*>(p.out)[m * p.ldc + row] = from_float<T>(sum_of(sums[m]) + (bias ? to_float(bias[row]) : 0.0f));
}

// Two rows in turn, far apart: memory serves two streams better than one.
template <int M, class T>
void run_as(const Product& p, const float* x, int64_t first, int64_t last) {
  const Planes planes(p.code);
  const int64_t middle = first + (last - first) / 2;
  for (int64_t row = first; row < middle; row++) {
    row_of<M, T>(p, planes, x, row);
    row_of<M, T>(p, planes, x, row + middle - first);
  }
  if ((last - first) % 2) row_of<M, T>(p, planes, x, last - 1);
}

template <int M>
void run_rows(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.dtype == BNB_FLOAT32) return run_as<M, float>(p, x, first, last);
  if (p.dtype == BNB_FLOAT16) return run_as<M, half>(p, x, first, last);
  run_as<M, bfloat16>(p, x, first, last);
}

void run(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr decltype(&run_rows<1>) kRuns[] = {nullptr, &run_rows<1>, &run_rows<2>, &run_rows<3>, &run_rows<4>};
  kRuns[p.m](p, x, first, last);
}

const Implementation dots{gemv_4bit, Isa::avx2, Gemv{4, kStep, &prepare, &run}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
