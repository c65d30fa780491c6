// Panels of bfloat16 pairs, [k / 2][kPanel][2]: after avx512.h, inside the region of an instruction set with AVX512-BF16.
// A weight is code * scale, rounded once: CUDA's.

// Two columns of k, of which the low half and the high half of a vector are, lane by lane.
__m512i interleaved(__m512i halves) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                         19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}
__m512i pairs_of(__m512 even, __m512 odd) { return interleaved((__m512i)_mm512_cvtne2ps_pbh(odd, even)); }

template <int MULTIPLE>
void fill_up(char* panel, int64_t k) {
  for (; k % MULTIPLE; k += 2) _mm512_store_si512(panel + k / 2 * 64, _mm512_setzero_si512());
}

template <int MULTIPLE>
void panel_of_pairs(const PanelOfB& b, void* out) {
  const __m512 code = _mm512_loadu_ps(b.code);
  char* const pairs = static_cast<char*>(out);
  for_each_dword(b, [&](int64_t k, __m512i dword, __m512 scale) {
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      const __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(dword, 4 * j + 4), code);
      const __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(dword, 4 * j), code);
      _mm512_store_si512(pairs + (k + j) / 2 * 64, pairs_of(_mm512_mul_ps(even, scale), _mm512_mul_ps(odd, scale)));
    }
  });
  fill_up<MULTIPLE>(pairs, b.k);
}

template <int MULTIPLE>
void convert_to_pairs(const float* values, int64_t k, void* out) {
  char* const pairs = static_cast<char*>(out);
  for (int64_t i = 0; i < k; i += 2) {
    const __m512 odd = i + 1 < k ? _mm512_loadu_ps(values + (i + 1) * kPanel) : _mm512_setzero_ps();
    _mm512_store_si512(pairs + i / 2 * 64, pairs_of(_mm512_loadu_ps(values + i * kPanel), odd));
  }
  fill_up<MULTIPLE>(pairs, k + k % 2);
}
