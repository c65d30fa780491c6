// lanes.h for AVX2.

using Lanes = __m256;
constexpr int kLanes = 8;

BNB_INLINE Lanes load(const float* p) { return _mm256_loadu_ps(p); }
BNB_INLINE Lanes load(const half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
BNB_INLINE Lanes load(const bfloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

BNB_INLINE __m256i bfloat16_bits(Lanes x) {  // in the high halves; the low ones are undefined
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
}
BNB_INLINE void store(float* p, Lanes x) { _mm256_storeu_ps(p, x); }
BNB_INLINE void store(half* p, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
BNB_INLINE void store(bfloat16* p, Lanes x) {
  const __m256i bits = _mm256_srli_epi32(bfloat16_bits(x), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
template <class T>
BNB_INLINE Lanes rounded(Lanes x) {
  if constexpr (std::is_same_v<T, half>) return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  if constexpr (std::is_same_v<T, bfloat16>)
    return _mm256_castsi256_ps(_mm256_and_si256(bfloat16_bits(x), _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  return x;
}

BNB_INLINE Lanes broadcast(float x) { return _mm256_set1_ps(x); }
BNB_INLINE Lanes magnitude(Lanes x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
BNB_INLINE Lanes square_root(Lanes x) { return _mm256_sqrt_ps(x); }
BNB_INLINE Lanes larger(Lanes x, Lanes maximum) { return _mm256_max_ps(x, maximum); }  // the second, if one is NaN
BNB_INLINE float largest(Lanes x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
BNB_INLINE float sum(Lanes x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

BNB_INLINE Lanes values_of(const float* map, const uint8_t* codes) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_i32gather_ps(map, _mm256_cvtepu8_epi32(bytes), 4);
}

// The outcomes of the eight comparisons, the first in the lowest bit.
BNB_INLINE __m256i path_of(const Thresholds& t, Lanes x) {
  const auto at_least = [&](Lanes a, Lanes b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); };
  const auto bit = [&](Lanes mask, int value) { return _mm256_and_si256(_mm256_castps_si256(mask), _mm256_set1_epi32(value)); };
  const auto lookup = [&](const float* table, __m256i i) { return _mm256_permutevar8x32_ps(_mm256_load_ps(table), i); };
  Lanes mask = at_least(x, broadcast(t.upper[0][0]));
  __m256i path = bit(mask, 1);
  mask = at_least(x, _mm256_blendv_ps(broadcast(t.upper[1][0]), broadcast(t.upper[1][1]), mask));
  path = _mm256_or_si256(path, bit(mask, 2));
  mask = at_least(x, lookup(t.upper[2], path));
  path = _mm256_or_si256(path, bit(mask, 4));
  mask = at_least(x, lookup(t.upper[3], path));
  const Lanes fifth = _mm256_blendv_ps(lookup(t.upper[4], path), lookup(t.upper[4] + 8, path), mask);
  path = _mm256_or_si256(path, bit(mask, 8));
  path = _mm256_or_si256(path, bit(at_least(x, fifth), 16));
  path = _mm256_or_si256(path, bit(at_least(x, _mm256_i32gather_ps(t.sixth, path, 4)), 32));
  path = _mm256_or_si256(path, bit(at_least(x, _mm256_i32gather_ps(t.seventh, path, 4)), 64));
  const Lanes last = _mm256_cmp_ps(x, _mm256_i32gather_ps(t.eighth, path, 4), _CMP_GT_OQ);
  return _mm256_or_si256(path, bit(last, 128));
}

// The bytes of four vectors of dwords, packed by twos within halves of 16 bytes.
BNB_INLINE __m256i in_order(__m256i packed) {
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// The low bytes of 32 dwords, none above 255.
BNB_INLINE __m256i bytes_of(__m256i a, __m256i b, __m256i c, __m256i d) {
  return in_order(_mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d)));
}

BNB_INLINE __m256i reversed_bits(__m256i x) {  // of each byte
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i reversed = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15));
  const __m256i above = _mm256_shuffle_epi8(_mm256_slli_epi16(reversed, 4), _mm256_and_si256(x, low));
  return _mm256_or_si256(above, _mm256_shuffle_epi8(reversed, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
}

// See lanes_scalar.h.
template <bool SIGNED, class Value>
BNB_INLINE void codes_64(const Thresholds& t, int first_nonnegative, const Value& value, uint8_t* out) {
  for (int half_of_it = 0; half_of_it < 2; half_of_it++) {
    __m256i paths[4], states[4];
    for (int j = 0; j < 4; j++) {
      Lanes state{};
      paths[j] = path_of(t, value(4 * half_of_it + j, state));
      states[j] = _mm256_castps_si256(state);
    }
    __m256i codes = reversed_bits(bytes_of(paths[0], paths[1], paths[2], paths[3]));
    if constexpr (SIGNED) {
      const __m256i zero = _mm256_setzero_si256();
      const auto sign = [&](__m256i bits) {  // -1, 0 or 1
        const Lanes state = _mm256_castsi256_ps(bits);
        const __m256i positive = _mm256_castps_si256(_mm256_cmp_ps(state, _mm256_setzero_ps(), _CMP_GT_OQ));
        return _mm256_sub_epi32(_mm256_castps_si256(_mm256_cmp_ps(state, _mm256_setzero_ps(), _CMP_LT_OQ)), positive);
      };
      const __m256i low = _mm256_packs_epi32(sign(states[0]), sign(states[1]));
      const __m256i high = _mm256_packs_epi32(sign(states[2]), sign(states[3]));
      const __m256i signs = in_order(_mm256_packs_epi16(low, high));
      const __m256i last = _mm256_set1_epi8(static_cast<char>(first_nonnegative - 1));
      const __m256i below = first_nonnegative ? _mm256_cmpeq_epi8(_mm256_min_epu8(codes, last), codes) : zero;
      const __m256i other = _mm256_xor_si256(_mm256_cmpgt_epi8(zero, signs), below);
      const __m256i step = _mm256_blendv_epi8(_mm256_set1_epi8(-1), _mm256_set1_epi8(1), _mm256_cmpgt_epi8(signs, zero));
      codes = _mm256_add_epi8(codes, _mm256_and_si256(step, other));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half_of_it), codes);
  }
}
