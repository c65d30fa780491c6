// Vectors of words of 4 bytes: see kernel.h.

using Words = __m512i;
constexpr int kWide = 16, kRows = 12;

BNB_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
BNB_INLINE void store_words(void* p, Words x) { _mm512_storeu_si512(p, x); }
BNB_INLINE Words broadcast_word(int32_t x) { return _mm512_set1_epi32(x); }
BNB_INLINE int32_t sum_words(Words x) { return _mm512_reduce_add_epi32(x); }
// In word i the sum of x[i].
BNB_INLINE Words sum_each(const Words (&x)[16]) {
  Words y[8], z[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    y[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    z[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(y[2 * i], y[2 * i + 1]), _mm512_unpackhi_epi64(y[2 * i], y[2 * i + 1]));
  const auto halves = [&](Words a, Words b) __attribute__((always_inline)) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  };
  return halves(halves(z[0], z[1]), halves(z[2], z[3]));
}
// The first `bytes` (above 0) of a vector, zeros behind.
BNB_INLINE Words load_bytes(const void* p, int64_t bytes) {
  return bytes >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - bytes), p);
}
