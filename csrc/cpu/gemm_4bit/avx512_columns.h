// Columns of B, for its transpose: after avx512.h, inside the region of an instruction set with AVX512.

void columns(const ColumnsOfB& b, float* values) {
  const __m512 code = _mm512_loadu_ps(b.code);
  const __m512i high_first = _mm512_set1_epi64(4);
  for (int64_t r = 0; r < b.rows; r++) {
    const uint8_t* const codes = b.codes + r * b.stride;
    _mm_prefetch(reinterpret_cast<const char*>(codes + kRowsAhead * b.stride), _MM_HINT_T0);
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m512i index = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes)), high_first);
    _mm512_store_ps(values + r * kPanel, _mm512_mul_ps(_mm512_permutexvar_ps(index, code), _mm512_set1_ps(b.scales[r])));
  }
}
