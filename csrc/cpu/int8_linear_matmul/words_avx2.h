// Vectors of words of 4 bytes: see kernel.h.

using Words = __m256i;
constexpr int kWide = 8, kRows = 6;

BNB_INLINE Words load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
BNB_INLINE void store_words(void* p, Words x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
BNB_INLINE Words broadcast_word(int32_t x) { return _mm256_set1_epi32(x); }
BNB_INLINE int32_t sum_words(Words x) {
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}
// In word i the sum of x[i].
BNB_INLINE Words sum_each(const Words (&x)[8]) {
  const Words a = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
  const Words b = _mm256_hadd_epi32(_mm256_hadd_epi32(x[4], x[5]), _mm256_hadd_epi32(x[6], x[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}
// The first `bytes` (above 0) of a vector, zeros behind.
BNB_INLINE Words load_bytes(const void* p, int64_t bytes) {
  if (bytes >= 32) return load_words(p);
  alignas(32) char copy[32] = {};
  __builtin_memcpy(copy, p, static_cast<size_t>(bytes));
  return load_words(copy);
}
