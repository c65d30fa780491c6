// What the int8 kernels need beyond lanes_avx512.h.

BNB_INLINE Lanes load(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
BNB_INLINE Lanes load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
BNB_INLINE Lanes fused(Lanes x, Lanes y, Lanes z) { return _mm512_fmadd_ps(x, y, z); }
BNB_INLINE void store_low_bytes(int8_t* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_castps_si512(x)));
}
BNB_INLINE bool any_at_least(Lanes x, Lanes y) { return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ); }
