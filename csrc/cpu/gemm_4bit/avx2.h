// What the AVX2 files of gemm_4bit and gemv_4bit share: to be included inside their region and unnamed namespace.

inline __m256 load(const float* in) { return _mm256_loadu_ps(in); }
__m256 load(const half* in) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))); }
__m256 load(const bfloat16* in) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// The first `count` of 8; zeros behind them.
template <class T>
__m256 load_some(const T* in, int64_t count) {
  if (count >= 8) return load(in);
  float values[8] = {};
  for (int64_t i = 0; i < count; i++) values[i] = to_float(in[i]);
  return _mm256_loadu_ps(values);
}

inline void store(float* out, __m256 x) { _mm256_storeu_ps(out, x); }
inline void store(half* out, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(bfloat16* out, __m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i value = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  value = _mm256_blendv_epi8(value, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(value, value), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(words));
}

inline float sum_of(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float largest(__m256 x) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// 16 floats, looked up by 4 bits of each lane.
struct Table {
  __m256 low, high;
  explicit Table(const float* code) : low(_mm256_loadu_ps(code)), high(_mm256_loadu_ps(code + 8)) {}
  template <int SHIFT>
  __m256 at(__m256i codes) const {
    const __m256i index = _mm256_srli_epi32(codes, SHIFT);  // look-ups read three bits
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28 - SHIFT));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), fourth);
  }
};

// 16 floats by their bytes: byte i of all of them in plane[i], twice. A byte shuffle looks up 32 codes at once, but a byte of
// their values: four shuffles, whose bytes are then put together. Of 32 bytes, values[q] are of bytes 4 q to 4 q + 3 and
// 16 + 4 q to 16 + 4 q + 3.
struct Planes {
  __m256i plane[4];
  explicit Planes(const float* code) {
    alignas(16) uint8_t bytes[4][16];
    for (int i = 0; i < 16; i++)
      for (int j = 0; j < 4; j++) bytes[j][i] = static_cast<uint8_t>(__builtin_bit_cast(uint32_t, code[i]) >> 8 * j);
    for (int j = 0; j < 4; j++) plane[j] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes[j])));
  }

  void high(__m256i bytes, __m256 (&values)[4]) const {  // of their high nibbles
    look_up(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15)), values);
  }
  void low(__m256i bytes, __m256 (&values)[4]) const { look_up(_mm256_and_si256(bytes, _mm256_set1_epi8(15)), values); }

  void look_up(__m256i codes, __m256 (&values)[4]) const {
    const __m256i a = _mm256_shuffle_epi8(plane[0], codes), b = _mm256_shuffle_epi8(plane[1], codes);
    const __m256i c = _mm256_shuffle_epi8(plane[2], codes), d = _mm256_shuffle_epi8(plane[3], codes);
    const __m256i low_ab = _mm256_unpacklo_epi8(a, b), high_ab = _mm256_unpackhi_epi8(a, b);
    const __m256i low_cd = _mm256_unpacklo_epi8(c, d), high_cd = _mm256_unpackhi_epi8(c, d);
    values[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_ab, low_cd));
    values[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_ab, low_cd));
    values[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(high_ab, high_cd));
    values[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(high_ab, high_cd));
  }
};

// Loads of the first `count` dwords of 8, and of nothing else.
inline __m256i first_dwords(int64_t count) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<int64_t>(count, 8))), lane);
}
