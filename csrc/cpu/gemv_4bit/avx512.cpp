#include <immintrin.h>

#include "gemv_4bit.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx512.h"

// 64 bytes of codes are 16 dwords of 8. In step j all lanes look up bits 4 j to 4 j + 3, so that lane i meets element
// 8 i + (j ^ 1) of A: x is [k / 128][rows of A][j][i].
constexpr int64_t kStep = 128;
// Elements of K at a time: where statistics are nested, their scales are made together.
constexpr int64_t kSpan = 2048;

template <class T>
void prepare_as(const Product& p, float* x) {
  const __m512i eighth = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 3);
  for (int64_t k = 0; k < p.k; k += kStep)
    for (int64_t m = 0; m < p.m; m++, x += kStep) {
      const T* const in = static_cast<const T*>(p.A) + m * p.lda + k;
      alignas(64) float values[kStep];
      for (int64_t i = 0; i < kStep; i += 16)
        _mm512_store_ps(values + i, load(in + i, first_lanes(std::max<int64_t>(0, p.k - k - i))));
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) _mm512_storeu_ps(x + 16 * j, _mm512_i32gather_ps(eighth, values + (j ^ 1), 4));
    }
}
void prepare(const Product& p, float* x) {
  if (p.dtype == BNB_FLOAT32) return prepare_as<float>(p, x);
  if (p.dtype == BNB_FLOAT16) return prepare_as<half>(p, x);
  prepare_as<bfloat16>(p, x);
}

// The scales of 128 codes, lane by lane; BLOCKS: so many blocks are in them.
template <int BLOCKS>
__m512 scales_in_lanes(const float* scales, int64_t valid) {
  if constexpr (BLOCKS == 1) {
    return _mm512_set1_ps(*scales);
  } else {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512 few = _mm512_castps128_ps512(_mm_maskz_loadu_ps(static_cast<__mmask8>((1 << valid) - 1), scales));
    return _mm512_permutexvar_ps(_mm512_srli_epi32(lane, BLOCKS == 2 ? 3 : 2), few);
  }
}

// sums[r][m] += 128 codes of each row of B, or as many as the mask's lanes hold, times x.
template <int ROWS, int M, int BLOCKS>
void step(const uint8_t* const (&b)[ROWS], const float* const (&scales)[ROWS], const float* x, __mmask16 mask, int64_t valid,
          __m512 code, __m512 (&sums)[ROWS][M]) {
  __m512i codes[ROWS];
  __m512 part[ROWS][M];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) codes[r] = _mm512_maskz_loadu_epi32(mask, b[r]);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const __m512 value = _mm512_permutexvar_ps(j ? _mm512_srli_epi32(codes[r], 4 * j) : codes[r], code);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        const __m512 a = _mm512_loadu_ps(x + m * kStep + 16 * j);
        part[r][m] = j ? _mm512_fmadd_ps(value, a, part[r][m]) : _mm512_mul_ps(value, a);
      }
    }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
    const __m512 scale = scales_in_lanes<BLOCKS>(scales[r], valid);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) sums[r][m] = _mm512_fmadd_ps(part[r][m], scale, sums[r][m]);
  }
}

// scales_of nested statistics: 16 look-ups in registers.
void nested_scales(const BnbStatistics& statistics, int64_t first, int64_t count, float* out) {
  const float* const code = statistics.absmax_code;
  const __m512 offset = _mm512_set1_ps(*statistics.absmax_offset);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t at = first + i, lanes = std::min<int64_t>(16, count - i), same = 256 - (at & 255);  // before the next outer one
    const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(lanes), statistics.absmax_8bit + at);
    const __m512i index = _mm512_cvtepu8_epi32(bytes);
    const auto among_32 = [&](int j) {
      return _mm512_permutex2var_ps(_mm512_loadu_ps(code + 32 * j), index, _mm512_loadu_ps(code + 32 * j + 16));
    };
    const auto bit = [&](int value) { return _mm512_test_epi32_mask(index, _mm512_set1_epi32(value)); };
    const __mmask16 fifth = bit(32), sixth = bit(64);
    const auto among_128 = [&](int j) {
      const __m512 low = _mm512_mask_blend_ps(fifth, among_32(j), among_32(j + 1));
      return _mm512_mask_blend_ps(sixth, low, _mm512_mask_blend_ps(fifth, among_32(j + 2), among_32(j + 3)));
    };
    const __m512 value = _mm512_mask_blend_ps(bit(128), among_128(0), among_128(4));
    __m512 outer = _mm512_set1_ps(statistics.absmax[at >> 8]);
    if (same < lanes) outer = _mm512_mask_mov_ps(_mm512_set1_ps(statistics.absmax[(at >> 8) + 1]), first_lanes(same), outer);
    _mm512_store_ps(out + i, _mm512_add_ps(_mm512_mul_ps(value, outer), offset));
  }
}

// sums[r][m] += elements from to until of each row times x; `ahead`: bytes to the codes that are read some time later.
template <int ROWS, int M, int BLOCKS>
void add_span(const Product& p, const float* x, const int64_t (&row)[ROWS], int64_t from, int64_t until, int64_t ahead,
              __m512 (&sums)[ROWS][M]) {
  const __m512 code = _mm512_loadu_ps(p.code);
  const bool nested = p.statistics.absmax_8bit;
  const uint8_t* b[ROWS];
  const float* scales[ROWS];
  alignas(64) float made[ROWS][kSpan / 32];
  const int64_t skipped = BLOCKS == 1 ? from & (p.blocksize - 1) : 0;  // of a block that began before
  for (int r = 0; r < ROWS; r++) {
    const int64_t at = row[r] * p.ldb + from, block = at >> p.shift;
    b[r] = p.B + at / 2;
    scales[r] = nested ? made[r] : p.statistics.absmax + block;
    if (nested) nested_scales(p.statistics, block, ((at + until - from - 1) >> p.shift) - block + 1, made[r]);
  }
  const float* const at_x = x + from * M;
  const int64_t steps = (until - from) / kStep;
  for (int64_t i = 0; i < steps; i++) {
    const uint8_t* codes[ROWS];
    const float* its[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      codes[r] = b[r] + 64 * i;
      its[r] = scales[r] + (BLOCKS == 1 ? (skipped + i * kStep) >> p.shift : BLOCKS * i);
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + ahead), _MM_HINT_T0);
    }
    step<ROWS, M, BLOCKS>(codes, its, at_x + i * kStep * M, 0xffff, BLOCKS, code, sums);
  }
  const int64_t left = until - from - steps * kStep;
  if (BLOCKS > 1 && left) {
    const uint8_t* codes[ROWS];
    const float* its[ROWS];
    for (int r = 0; r < ROWS; r++) {
      codes[r] = b[r] + 64 * steps;
      its[r] = scales[r] + BLOCKS * steps;
    }
    step<ROWS, M, BLOCKS>(codes, its, at_x + steps * kStep * M, first_lanes(left / 8), ceil_div(left, p.blocksize), code, sums);
  }
}

template <int ROWS, int M, class T>
void finish_rows(const Product& p, const int64_t (&row)[ROWS], const __m512 (&sums)[ROWS][M]) {
  T* const out = static_cast<T*>(p.out);
  const T* const bias = static_cast<const T*>(p.bias);
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) {
      __m512 sum = _mm512_set1_ps(_mm512_reduce_add_ps(sums[r][m]));
      if (bias) sum = _mm512_add_ps(sum, load(bias + row[r], 1));
      store(out + m * p.ldc + row[r], 1, sum);
    }
}

// `count` times ROWS rows, `apart` from each other. Few at a time pass over a part of K that stays in the first cache.
template <int ROWS, int M, int BLOCKS, class T>
void rows_of(const Product& p, const float* x, int64_t first, int64_t count, int64_t apart) {
  constexpr int kTogether = M == 1 ? 1 : 16;
  constexpr int64_t kPart = M <= 2 ? kSpan : kSpan / 2;
  const int64_t ahead = M == 1 ? 1024 : p.ldb;  // further on in the row, or two rows on
  for (int64_t start = first; start < first + count; start += kTogether) {
    const int64_t these = std::min<int64_t>(kTogether, first + count - start);
    __m512 sums[kTogether][ROWS][M] = {};
    const auto with_rows = [&](int64_t i, const auto& body) {
      int64_t row[ROWS];
      for (int r = 0; r < ROWS; r++) row[r] = start + i + r * apart;
      body(row, sums[i]);
    };
    for (int64_t from = 0; from < p.k; from += kPart)
      for (int64_t i = 0; i < these; i++)
        with_rows(i, [&](const int64_t (&row)[ROWS], __m512(&its)[ROWS][M]) {
          __m512 registers[ROWS][M];
          for (int r = 0; r < ROWS; r++)
            for (int m = 0; m < M; m++) registers[r][m] = its[r][m];
          add_span<ROWS, M, BLOCKS>(p, x, row, from, std::min(p.k, from + kPart), ahead, registers);
          for (int r = 0; r < ROWS; r++)
            for (int m = 0; m < M; m++) its[r][m] = registers[r][m];
        });
    for (int64_t i = 0; i < these; i++)
      with_rows(i, [&](const auto& row, const auto& its) { finish_rows<ROWS, M, T>(p, row, its); });
  }
}

// Several rows at a time, far apart: memory serves some streams better than one.
template <int M, int BLOCKS, class T>
void run_as(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr int kRows = M == 1 ? 4 : 2;
  const int64_t apart = (last - first) / kRows;
  rows_of<kRows, M, BLOCKS, T>(p, x, first, apart, apart);
  rows_of<1, M, BLOCKS, T>(p, x, first + kRows * apart, last - first - kRows * apart, 0);
}

template <int M, int BLOCKS>
void run_of(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.dtype == BNB_FLOAT32) return run_as<M, BLOCKS, float>(p, x, first, last);
  if (p.dtype == BNB_FLOAT16) return run_as<M, BLOCKS, half>(p, x, first, last);
  run_as<M, BLOCKS, bfloat16>(p, x, first, last);
}

template <int M>
void run_rows(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.blocksize == 32) return run_of<M, 4>(p, x, first, last);
  if (p.blocksize == 64) return run_of<M, 2>(p, x, first, last);
  run_of<M, 1>(p, x, first, last);
}

void run(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr decltype(&run_rows<1>) kRuns[] = {nullptr, &run_rows<1>, &run_rows<2>, &run_rows<3>, &run_rows<4>};
  kRuns[p.m](p, x, first, last);
}

const Implementation dots{gemv_4bit, Isa::avx512, Gemv{4, kStep, &prepare, &run}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
