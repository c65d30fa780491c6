// Rows of B by AVX2: after ../gemm_4bit/avx2.h. Step(code)(codes, x, part) makes, of 32 bytes of codes, products with the kStep
// elements of each of M rows of A that are prepared in M * Step::kFloats floats; lanes 0 to 3 are of the first 16 bytes.

constexpr int64_t kStep = 64;

// A part of each of some rows of B, with the scales from its first block on.
template <int ROWS>
struct Span {
  const uint8_t* codes[ROWS];
  const float* scales[ROWS];
  int64_t length;
  int64_t skipped;  // of a block that began before
  int shift;
};

// sums += the span's products with x. PAIRS: blocks are of 32, two in a step. Codes come to the second cache before the first,
// which waits for few lines at once.
template <bool PAIRS, int ROWS, int M, class Step>
void add_span(const Span<ROWS>& span, const Step& step, const float* x, __m256 (&all_sums)[ROWS][M]) {
  __m256 sums[ROWS][M];  // in registers: through the reference, each step would store them
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) sums[r][m] = all_sums[r][m];
  const Step its = step;
  const int shift = span.shift;
  const auto add = [&](int r, __m256i codes, __m256 scale) __attribute__((always_inline)) {
    __m256 part[M];
    its(codes, x, part);
#pragma GCC unroll 4
    for (int m = 0; m < M; m++) sums[r][m] = _mm256_fmadd_ps(part[m], scale, sums[r][m]);
  };
  const int64_t end = span.skipped + span.length / kStep * kStep;
  const uint8_t* codes[ROWS];
  for (int r = 0; r < ROWS; r++) codes[r] = span.codes[r];
  for (int64_t at = span.skipped; at < end; at += kStep, x += M * Step::kFloats) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + 512), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(codes[r] + 1536), _MM_HINT_T1);
      const float* const scale = span.scales[r] + (PAIRS ? at / 32 : at >> shift);
      add(r, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes[r])),
          PAIRS ? _mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0])) : _mm256_broadcast_ss(scale));
      codes[r] += kStep / 2;
    }
  }
  if (PAIRS && span.length % kStep)  // one block
    for (int r = 0; r < ROWS; r++)
      add(r, _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes[r]))),
          _mm256_zextps128_ps256(_mm_set1_ps(span.scales[r][end / 32])));
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) all_sums[r][m] = sums[r][m];
}

// ROWS rows, `apart` from each other.
template <int ROWS, int M, class T, class Step>
void rows_of(const Product& p, const Step& step, const float* x, int64_t row, int64_t apart) {
  __m256 sums[ROWS][M];
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) sums[r][m] = _mm256_setzero_ps();
  for (int64_t from = 0; from < p.k; from += kSpan) {
    const int64_t until = std::min(p.k, from + kSpan);
    float made[ROWS][kSpan / 32];
    Span<ROWS> span{{}, {}, until - from, from & (p.blocksize - 1), p.shift};
    for (int r = 0; r < ROWS; r++) {
      const int64_t at = (row + r * apart) * p.ldb + from, block = at >> p.shift;
      span.codes[r] = p.B + at / 2;
      span.scales[r] = p.statistics.absmax + block;
      if (!p.statistics.absmax_8bit) continue;
      scales_of(p.statistics, block, ((at + until - from - 1) >> p.shift) - block + 1, made[r]);
      span.scales[r] = made[r];
    }
    const float* const its = x + from / kStep * M * Step::kFloats;
    p.blocksize == 32 ? add_span<true>(span, step, its, sums) : add_span<false>(span, step, its, sums);
  }
  const T* const bias = static_cast<const T*>(p.bias);
  for (int r = 0; r < ROWS; r++)
    for (int m = 0; m < M; m++) {
      const int64_t n = row + r * apart;
      static_cast<T*>(p.out)[m * p.ldc + n] = from_float<T>(sum_of(sums[r][m]) + (bias ? to_float(bias[n]) : 0.0f));
    }
}

// Two rows at a time, far apart: memory serves two streams better than one.
template <int M, class T, class Step>
void run_as(const Product& p, const float* x, int64_t first, int64_t last) {
  const Step step(p.code);
  const int64_t apart = (last - first) / 2;
  for (int64_t row = first; row < first + apart; row++) rows_of<2, M, T>(p, step, x, row, apart);
  if ((last - first) % 2) rows_of<1, M, T>(p, step, x, last - 1, 0);
}
