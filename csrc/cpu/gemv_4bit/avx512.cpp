#include <immintrin.h>

#include "gemv_4bit.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx512.h"

// 64 bytes of codes are 16 dwords of 8. In step j all lanes look up bits 4 j to 4 j + 3, so that lane i meets element
// 8 i + (j ^ 1) of A: x is [k / 128][rows of A][j][i].
constexpr int64_t kStep = 128;

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
bool prepare(const Product& p, float* x) {
  with_dtype(p.dtype, [&](auto zero) { prepare_as<decltype(zero)>(p, x); });
  return true;
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

// Pointers into ROWS rows, which are equally far apart.
template <class T>
struct Rows {
  const T* first;
  int64_t apart;

  const T* operator[](int64_t r) const { return first + r * apart; }
  Rows from(int64_t i) const { return {first + i, apart}; }
};

// sums[r][m] += 128 codes of each row of B, or as many as the mask's lanes hold, times x.
template <int ROWS, int M, int BLOCKS>
[[gnu::always_inline]] inline void step(Rows<uint8_t> b, Rows<float> scales, const float* x, __mmask16 mask, int64_t valid,
                                        __m512 code, __m512 (&sums)[ROWS][M]) {
  __m512i codes[ROWS];
  __m512 part[ROWS][M];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
    __m512i its = _mm512_maskz_loadu_epi32(mask, b[r]);
    asm("" : "+v"(its));  // else each shift loads them again, and look-ups of scales wait for loads
    codes[r] = its;
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    __m512 a[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) {
      a[m] = _mm512_loadu_ps(x + m * kStep + 16 * j);
      asm("" : "+v"(a[m]));  // else each row loads it again
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const __m512 value = _mm512_permutexvar_ps(j ? _mm512_srli_epi32(codes[r], 4 * j) : codes[r], code);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) part[r][m] = j ? _mm512_fmadd_ps(value, a[m], part[r][m]) : _mm512_mul_ps(value, a[m]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
    const __m512 scale = scales_in_lanes<BLOCKS>(scales[r], valid);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) sums[r][m] = _mm512_fmadd_ps(part[r][m], scale, sums[r][m]);
  }
}

// Statistics are fetched so many bytes ahead: what hardware fetches of so many thin streams beside those of codes is too little.
constexpr int64_t kStatisticsAhead = 256;

// Elements from to until of ROWS rows of B.
struct Span {
  int64_t row, apart, from, until;
};

// The scales of nested statistics, where all units for vectors are busy with weights: a span's are looked up one by one while the
// one before is multiplied, some in each step; products of vectors make scales of them when they are wanted.
template <int ROWS>
class Nested {
 public:
  explicit Nested(const Product& p) : p_(p), is_(p.statistics.absmax_8bit) {}
  bool is() const { return is_; }

  void expect(const Span& span) {
    const int64_t begin = span.row * p_.ldb;
    first_ = (begin + span.from) >> p_.shift;
    apart_ = (span.apart * p_.ldb) >> p_.shift;
    count_ = ((begin + span.until - 1) >> p_.shift) - first_ + 1;  // of each row: all begin where a block does
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
      _mm_prefetch(reinterpret_cast<const char*>(p_.statistics.absmax_8bit + first_ + r * apart_ + kStatisticsAhead), _MM_HINT_T0);
  }
  void expect_nothing() { count_ = 0; }
  int64_t expected() const { return count_; }
  // What looks up block i of each row that is expected.
  auto look_up() {
    const float* const code = p_.statistics.absmax_code;
    const Rows<uint8_t> bytes{p_.statistics.absmax_8bit + first_, apart_};
    float* const to = values_[now_ ^ 1];
    return [=](int64_t i) {
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        uint32_t bits;  // of no vector, lest the compiler gathers
        __builtin_memcpy(&bits, code + bytes[r][i], 4);
        asm("" : "+r"(bits));
        __builtin_memcpy(to + r * kMost + i, &bits, 4);
      }
    };
  }
  // The scales of what was expected.
  Rows<float> make() {
    now_ ^= 1;
    const __m512 offset = _mm512_set1_ps(*p_.statistics.absmax_offset);
    for (int r = 0; r < ROWS; r++)
      for (int64_t i = 0; i < count_; i += 16) {
        const int64_t at = first_ + r * apart_ + i, lanes = std::min<int64_t>(16, count_ - i), same = 256 - (at & 255);
        const float* const outers = p_.statistics.absmax + (at >> 8);
        __m512 outer = _mm512_set1_ps(*outers);
        if (same < lanes) outer = _mm512_mask_mov_ps(_mm512_set1_ps(outers[1]), first_lanes(same), outer);
        float* const its = values_[now_] + r * kMost + i;
        _mm512_store_ps(its, _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(its), outer), offset));
      }
    return {values_[now_], kMost};
  }

 private:
  static constexpr int64_t kMost = kSpan / 32;  // blocks of a span
  alignas(64) float values_[2][ROWS * kMost];
  const Product& p_;
  bool is_;
  int now_ = 0;
  int64_t first_ = 0, apart_ = 0, count_ = 0;
};

// What is fetched: codes `near` bytes ahead come to the first cache, which waits for few lines at once, and `far` bytes ahead from
// memory to the second; `jump` bytes further on where no more than `far` are `left` of a span's row and those that follow it.
struct Ahead {
  int64_t near, far, jump, left;
};

// sums[r][m] += the span of each row times x. Nested scales of the span have been looked up, and those of the one that comes next
// will be.
template <int ROWS, int M, int BLOCKS>
void add_span(const Product& p, const float* x, const Span& span, const Span* coming, Ahead ahead, Nested<ROWS>& nested,
              __m512 (&all_sums)[ROWS][M]) {
  __m512 sums[ROWS][M];  // in registers: through the reference, each step would store them
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) sums[r][m] = all_sums[r][m];
  const __m512 code = _mm512_loadu_ps(p.code);
  const int64_t from = span.from, at = span.row * p.ldb + from, length = span.until - from;
  const int64_t skipped = BLOCKS == 1 ? from & (p.blocksize - 1) : 0;  // of a block that began before
  const int shift = p.shift;
  const Rows<uint8_t> b{p.B + at / 2, span.apart * p.ldb / 2};
  Rows<float> scales;
  if (nested.is()) {
    scales = nested.make();
    coming ? nested.expect(*coming) : nested.expect_nothing();
  } else {
    scales = {p.statistics.absmax + (at >> shift), (span.apart * p.ldb) >> shift};
    for (int r = 0; r < ROWS; r++)
      for (int64_t i = 0; i < length >> shift; i += 16)
        _mm_prefetch(reinterpret_cast<const char*>(scales[r] + i) + kStatisticsAhead, _MM_HINT_T0);
  }
  const auto look_up = nested.look_up();
  const float* const at_x = x + from * M;
  const int64_t steps = length / kStep, expected = nested.expected(), early = std::min(steps, expected / BLOCKS);
  for (int64_t i = 0; i < steps; i++) {
    const Rows<uint8_t> codes = b.from(64 * i);
    const int64_t far = ahead.far + (ahead.left - 64 * i <= ahead.far ? ahead.jump : 0);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + ahead.near), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + far), _MM_HINT_T1);
    }
    step<ROWS, M, BLOCKS>(codes, scales.from(BLOCKS == 1 ? (skipped + i * kStep) >> shift : BLOCKS * i), at_x + i * kStep * M,
                          0xffff, BLOCKS, code, sums);
    if (i < early)
#pragma GCC unroll 4
      for (int block = 0; block < BLOCKS; block++) look_up(BLOCKS * i + block);
  }
  for (int64_t i = BLOCKS * early; i < expected; i++) look_up(i);
  const int64_t left = length - steps * kStep;
  if (BLOCKS > 1 && left)
    step<ROWS, M, BLOCKS>(b.from(64 * steps), scales.from(BLOCKS * steps), at_x + steps * kStep * M, first_lanes(left / 8),
                          ceil_div(left, p.blocksize), code, sums);
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) all_sums[r][m] = sums[r][m];
}

template <int ROWS, int M, class T>
void finish_rows(const Product& p, int64_t row, int64_t apart, const __m512 (&sums)[ROWS][M]) {
  T* const out = static_cast<T*>(p.out);
  const T* const bias = static_cast<const T*>(p.bias);
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) {
      __m512 sum = _mm512_set1_ps(_mm512_reduce_add_ps(sums[r][m]));
      if (bias) sum = _mm512_add_ps(sum, load(bias + row + r * apart, 1));
      store(out + m * p.ldc + row + r * apart, 1, sum);
    }
}

// `count` times ROWS rows, `apart` from each other, of a `piece` of so many. Of up to three rows of A, the second cache gives what
// is multiplied as fast as it is; of four, few rows of B at a time pass over a part of K that stays in the first cache.
template <int ROWS, int M, int BLOCKS, class T>
void rows_of(const Product& p, const float* x, int64_t first, int64_t count, int64_t apart, int64_t piece) {
  constexpr bool kInOrder = M <= 3;
  constexpr int kTogether = kInOrder ? 1 : 8;
  constexpr int64_t kPart = kInOrder ? kSpan : kSpan / 2;
  const int64_t end = first + count, row_bytes = p.ldb / 2;
  // Further on in the row, and beyond the last row where the next piece's begin; or else in the next rows.
  Ahead ahead = kInOrder ? Ahead{512, 1024, ROWS > 1 ? (piece - apart) * row_bytes : 0, 0} : Ahead{row_bytes, 2 * row_bytes, 0, 0};
  const auto span_at = [&](int64_t row, int64_t from) { return Span{row, apart, from, std::min(p.k, from + kPart)}; };
  Nested<ROWS> nested(p);
  if (nested.is() && count) {
    nested.expect(span_at(first, 0));
    const auto look_up = nested.look_up();
    for (int64_t i = 0; i < nested.expected(); i++) look_up(i);
  }
  for (int64_t start = first; start < end; start += kTogether) {
    const int64_t these = std::min<int64_t>(kTogether, end - start);
    __m512 sums[kTogether][ROWS][M] = {};
    for (int64_t from = 0; from < p.k; from += kPart)
      for (int64_t i = 0; i < these; i++) {
        const bool goes_on = from + kPart < p.k;
        const Span coming =
            i + 1 < these ? span_at(start + i + 1, from) : span_at(goes_on ? start : start + these, goes_on ? from + kPart : 0);
        ahead.left = (end - start) * row_bytes - from / 2;
        add_span<ROWS, M, BLOCKS>(p, x, span_at(start + i, from), coming.row < end ? &coming : nullptr, ahead, nested, sums[i]);
      }
    for (int64_t i = 0; i < these; i++) finish_rows<ROWS, M, T>(p, start + i, apart, sums[i]);
  }
}

// Several rows at a time, far apart: memory serves some streams better than one.
template <int M, int BLOCKS, class T>
void run_as(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr int kRows = M <= 2 ? 4 : M == 3 ? 3 : 2;  // what registers hold the sums of
  const int64_t apart = (last - first) / kRows;
  rows_of<kRows, M, BLOCKS, T>(p, x, first, apart, apart, last - first);
  rows_of<1, M, BLOCKS, T>(p, x, first + kRows * apart, last - first - kRows * apart, 0, last - first);
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

// A look-up of 32 words takes two instructions here, as two of 16 floats do.
const Implementation no_words{gemv_4bit_words, Isa::avx512, Gemv{}};
const Implementation dots{gemv_4bit, Isa::avx512, Gemv{8, 4, kStep, kStep, &prepare, &run}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
