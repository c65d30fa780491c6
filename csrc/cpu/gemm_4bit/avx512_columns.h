// Columns of B, for its transpose: after avx512.h, inside the region of an instruction set with AVX512.

void columns(const ColumnsOfB& b, void* panels) {
  const __m512 code = _mm512_loadu_ps(b.code);
  const __m512i high_first = _mm512_set1_epi64(4);
  const float* scales = b.scales;
  for (int64_t r = 0; r < b.rows; r++) {
    const uint8_t* const codes = b.codes + r * b.stride;
    prefetch_columns(b, codes);
    for (int64_t first = 0; first < b.panels; first += b.of_block) {
      const __m512 table = _mm512_mul_ps(code, _mm512_set1_ps(*scales++));
      for (int64_t i = first, last = std::min(b.panels, first + b.of_block); i < last; i++) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i * kPanel / 2));
        const __m512i index = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes)), high_first);
        char* const to = static_cast<char*>(panels) + i * b.panel_stride + r * 64;
        _mm512_store_ps(to, _mm512_permutexvar_ps(index, table));
      }
    }
  }
}
