#include <immintrin.h>

#include "gemv_4bit.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx2.h"

// 32 bytes of codes are 8 dwords of 8. In step j all lanes look up bits 4 j to 4 j + 3, so that lane i meets element
// 8 i + (j ^ 1) of A: x is [k / 64][rows of A][j][i].
constexpr int64_t kStep = 64;
constexpr int64_t kSpan = 2048;

template <class T>
void prepare_as(const Product& p, float* x) {
  for (int64_t k = 0; k < p.k; k += kStep)
    for (int64_t m = 0; m < p.m; m++, x += kStep) {
      const T* const in = static_cast<const T*>(p.A) + m * p.lda + k;
      alignas(32) float values[kStep];
      for (int64_t i = 0; i < kStep; i += 8) _mm256_store_ps(values + i, load_some(in + i, std::max<int64_t>(0, p.k - k - i)));
      for (int j = 0; j < 8; j++)
        for (int i = 0; i < 8; i++) x[8 * j + i] = values[8 * i + (j ^ 1)];
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

template <int M, int J>
void look_up(const Table& table, __m256i codes, const float* x, __m256 (&part)[M]) {
  const __m256 value = table.at<4 * J>(codes);
#pragma GCC unroll 2
  for (int m = 0; m < M; m++) {
    const __m256 a = _mm256_loadu_ps(x + m * kStep + 8 * J);
    part[m] = J ? _mm256_fmadd_ps(value, a, part[m]) : _mm256_mul_ps(value, a);
  }
}

template <int M, class T>
void row_of(const Product& p, const float* x, int64_t row) {
  const Table table(p.code);
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
      look_up<M, 0>(table, codes, at_x, part);
      look_up<M, 1>(table, codes, at_x, part);
      look_up<M, 2>(table, codes, at_x, part);
      look_up<M, 3>(table, codes, at_x, part);
      look_up<M, 4>(table, codes, at_x, part);
      look_up<M, 5>(table, codes, at_x, part);
      look_up<M, 6>(table, codes, at_x, part);
      look_up<M, 7>(table, codes, at_x, part);
      __m256 scale = _mm256_set1_ps(scales[(skipped + k) >> p.shift]);
      if (p.blocksize == 32) {
        const float* const two = scales + k / 32;
        scale = _mm256_set_m128(left > 32 ? _mm_set1_ps(two[1]) : _mm_setzero_ps(), _mm_set1_ps(two[0]));
      }
#pragma GCC unroll 2
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
  const int64_t middle = first + (last - first) / 2;
  for (int64_t row = first; row < middle; row++) {
    row_of<M, T>(p, x, row);
    row_of<M, T>(p, x, row + middle - first);
  }
  if ((last - first) % 2) row_of<M, T>(p, x, last - 1);
}

template <int M>
void run_rows(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.dtype == BNB_FLOAT32) return run_as<M, float>(p, x, first, last);
  if (p.dtype == BNB_FLOAT16) return run_as<M, half>(p, x, first, last);
  run_as<M, bfloat16>(p, x, first, last);
}

void run(const Product& p, const float* x, int64_t first, int64_t last) {
  p.m == 1 ? run_rows<1>(p, x, first, last) : run_rows<2>(p, x, first, last);
}

const Implementation dots{gemv_4bit, Isa::avx2, Gemv{2, kStep, &prepare, &run}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
