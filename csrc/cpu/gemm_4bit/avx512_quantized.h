// Activations in int8 by AVX512: after avx512.h and int8_activations.h.

// kBlock elements as codes, and the scale: times both codes, of A and B, it is a product of theirs. NaN is kept in it.
template <class T>
float quantized(const T* in, int8_t* codes) {
  __m512 x[4], most = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int i = 0; i < 4; i++) {
    x[i] = load(in + 16 * i, 0xffff);
    nan |= _mm512_cmp_ps_mask(x[i], x[i], _CMP_UNORD_Q);
    most = _mm512_max_ps(most, _mm512_abs_ps(x[i]));
  }
  const float top = nan ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(to_codes(top));
  for (int i = 0; i < 4; i++) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * i), _mm512_cvtsepi32_epi8(rounded));
  }
  return of_products(top);
}
