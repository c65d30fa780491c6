// lanes.h for AVX512.

using Lanes = __m512;
constexpr int kLanes = 16;

BNB_INLINE Lanes load(const float* p) { return _mm512_loadu_ps(p); }
BNB_INLINE Lanes load(const half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
BNB_INLINE Lanes load(const bfloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

BNB_INLINE __m512i bfloat16_bits(Lanes x) {  // in the high halves; the low ones are undefined
  const __m512i u = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}
BNB_INLINE void store(float* p, Lanes x) { _mm512_storeu_ps(p, x); }
BNB_INLINE void store(half* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bfloat16* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(x), 16)));
}
template <class T>
BNB_INLINE Lanes rounded(Lanes x) {
  if constexpr (std::is_same_v<T, half>) return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  if constexpr (std::is_same_v<T, bfloat16>)
    return _mm512_castsi512_ps(_mm512_and_si512(bfloat16_bits(x), _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  return x;
}

BNB_INLINE Lanes broadcast(float x) { return _mm512_set1_ps(x); }
BNB_INLINE Lanes magnitude(Lanes x) { return _mm512_abs_ps(x); }
BNB_INLINE Lanes square_root(Lanes x) { return _mm512_sqrt_ps(x); }
BNB_INLINE Lanes larger(Lanes x, Lanes maximum) { return _mm512_max_ps(x, maximum); }  // the second, if one is NaN
BNB_INLINE float largest(Lanes x) {
  __m256 h = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
BNB_INLINE float sum(Lanes x) { return _mm512_reduce_add_ps(x); }

// A look-up in a table of 128 (low: 0 to 127), among the 32 by the low bits of i, then by masks: bits 5 and 6 of i.
BNB_INLINE Lanes lookup(const float* table, __m512i i) {
  return _mm512_permutex2var_ps(_mm512_load_ps(table), i, _mm512_load_ps(table + 16));
}
BNB_INLINE Lanes lookup(const float* table, __m512i i, __mmask16 bit5) {
  return _mm512_mask_blend_ps(bit5, lookup(table, i), lookup(table + 32, i));
}
BNB_INLINE Lanes lookup(const float* table, __m512i i, __mmask16 bit5, __mmask16 bit6) {
  return _mm512_mask_blend_ps(bit6, lookup(table, i, bit5), lookup(table + 64, i, bit5));
}

// `map` is aligned to 64 bytes.
BNB_INLINE Lanes values_of(const float* map, const uint8_t* codes) {
  const __m512i i = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  const auto bit = [&](int value) { return _mm512_test_epi32_mask(i, _mm512_set1_epi32(value)); };
  const __mmask16 bit5 = bit(32), bit6 = bit(64), bit7 = bit(128);
  return _mm512_mask_blend_ps(bit7, lookup(map, i, bit5, bit6), lookup(map + 128, i, bit5, bit6));
}

// The outcomes of the eight comparisons, the first in the lowest bit.
BNB_INLINE __m512i path_of(const Thresholds& t, Lanes x) {
  const auto at_least = [&](Lanes bound) { return _mm512_cmp_ps_mask(x, bound, _CMP_GE_OQ); };
  const auto with = [&](__m512i path, __mmask16 mask, int bit) {
    return _mm512_mask_or_epi32(path, mask, path, _mm512_set1_epi32(bit));
  };
  const auto among_16 = [&](const float* table, __m512i i) { return _mm512_permutexvar_ps(i, _mm512_load_ps(table)); };
  const __mmask16 first = at_least(broadcast(t.upper[0][0]));
  __m512i path = _mm512_maskz_set1_epi32(first, 1);
  path = with(path, at_least(_mm512_mask_blend_ps(first, broadcast(t.upper[1][0]), broadcast(t.upper[1][1]))), 2);
  path = with(path, at_least(among_16(t.upper[2], path)), 4);
  path = with(path, at_least(among_16(t.upper[3], path)), 8);
  path = with(path, at_least(among_16(t.upper[4], path)), 16);
  const __mmask16 bit5 = at_least(lookup(t.sixth, path));
  path = with(path, bit5, 32);
  const __mmask16 bit6 = at_least(lookup(t.seventh, path, bit5));
  path = with(path, bit6, 64);
  return with(path, _mm512_cmp_ps_mask(x, lookup(t.eighth, path, bit5, bit6), _CMP_GT_OQ), 128);
}

// The low bytes of 64 dwords, none above 255, in order.
BNB_INLINE __m512i bytes_of(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, bytes);
}

BNB_INLINE __m512i reversed_bits(__m512i x) {  // of each byte
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i reversed = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15));
  const __m512i above = _mm512_shuffle_epi8(_mm512_slli_epi16(reversed, 4), _mm512_and_si512(x, low));
  return _mm512_or_si512(above, _mm512_shuffle_epi8(reversed, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
}

// See lanes_scalar.h.
template <bool SIGNED, class Value>
BNB_INLINE void codes_64(const Thresholds& t, int first_nonnegative, const Value& value, uint8_t* out) {
  __m512i paths[4];
  uint64_t negative = 0, positive = 0;
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    Lanes state{};
    paths[j] = path_of(t, value(j, state));
    if constexpr (SIGNED) {
      negative |= uint64_t{_mm512_cmp_ps_mask(state, _mm512_setzero_ps(), _CMP_LT_OQ)} << 16 * j;
      positive |= uint64_t{_mm512_cmp_ps_mask(state, _mm512_setzero_ps(), _CMP_GT_OQ)} << 16 * j;
    }
  }
  __m512i codes = reversed_bits(bytes_of(paths[0], paths[1], paths[2], paths[3]));
  if constexpr (SIGNED) {
    const __m512i last = _mm512_set1_epi8(static_cast<char>(first_nonnegative - 1)), one = _mm512_set1_epi8(1);
    const uint64_t below = first_nonnegative ? _mm512_cmple_epu8_mask(codes, last) : 0, other = below ^ negative;
    codes = _mm512_mask_add_epi8(codes, other & positive, codes, one);
    codes = _mm512_mask_sub_epi8(codes, other & ~positive, codes, one);
  }
  _mm512_storeu_si512(out, codes);
}
