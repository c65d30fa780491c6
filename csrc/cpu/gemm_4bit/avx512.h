// What the AVX512 files of gemm_4bit and gemv_4bit share: to be included inside their region and unnamed namespace.

__mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }
inline __mmask32 first_words(int64_t n) { return n >= 32 ? ~__mmask32{0} : n <= 0 ? __mmask32{0} : (__mmask32{1} << n) - 1; }

__m512 load(const float* in, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, in); }
__m512 load(const half* in, __mmask16 mask) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, in)); }
__m512 widened(__m256i bfloat16s) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16s), 16)); }
__m512 load(const bfloat16* in, __mmask16 mask) { return widened(_mm256_maskz_loadu_epi16(mask, in)); }

void store(float* out, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(out, mask, x); }
void store(half* out, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(out, mask, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
void store(bfloat16* out, __mmask16 mask, __m512 x) {
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i value = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(out, mask, _mm512_cvtepi32_epi16(value));
}
