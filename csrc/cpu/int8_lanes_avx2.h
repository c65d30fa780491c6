// What the int8 kernels need beyond lanes_avx2.h.

BNB_INLINE Lanes load(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
BNB_INLINE Lanes load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
BNB_INLINE Lanes fused(Lanes x, Lanes y, Lanes z) { return _mm256_fmadd_ps(x, y, z); }
BNB_INLINE void store_low_bytes(int8_t* p, Lanes x) {
  const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(x), first);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
BNB_INLINE bool any_at_least(Lanes x, Lanes y) { return _mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GE_OQ)); }
