// float16 and bfloat16 by products of whole numbers (words.h): after ../gemm_4bit/avx2.h, avx2_rows.h and a dot_words(sums, b, a),
// which adds products of words by twos. A look-up of 16 bits takes half the shuffles of one of 32, and an instruction or two
// multiply 16 of them.

// Of a step: [high, low][nibble][half of each 16 bytes][word], then the scale, eight times.
struct Words {
  static constexpr int64_t kFloats = kStep + 8;
  __m256i low_bytes, high_bytes;

  explicit Words(const float* code) {
    const WordTable& table = *words_of(code);
    alignas(16) uint8_t low[16], high[16];
    for (int i = 0; i < 16; i++) {
      const auto word = static_cast<uint16_t>(table.words[i]);
      low[i] = static_cast<uint8_t>(word), high[i] = static_cast<uint8_t>(word >> 8);
    }
    low_bytes = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(low)));
    high_bytes = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(high)));
  }

  template <int M>
  [[gnu::always_inline]] void operator()(__m256i codes, const float* x, __m256 (&part)[M]) const {
    __m256i high[M], low[M];
    for (int m = 0; m < M; m++) high[m] = low[m] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int nibble = 0; nibble < 2; nibble++) {
      const __m256i its = _mm256_and_si256(nibble ? codes : _mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
      const __m256i a = _mm256_shuffle_epi8(low_bytes, its), b = _mm256_shuffle_epi8(high_bytes, its);
      const __m256i values[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
#pragma GCC unroll 2
      for (int q = 0; q < 2; q++)
#pragma GCC unroll 2
        for (int m = 0; m < M; m++) {
          const auto* const at = reinterpret_cast<const __m256i_u*>(x + m * kFloats) + 2 * nibble + q;
          low[m] = dot_words(low[m], values[q], at[4]);
          high[m] = dot_words(high[m], values[q], at[0]);
        }
    }
#pragma GCC unroll 2
    for (int m = 0; m < M; m++) {
      const __m256 sum =
          _mm256_fmadd_ps(_mm256_cvtepi32_ps(low[m]), _mm256_set1_ps(1.0f / (1 << kLowBits)), _mm256_cvtepi32_ps(high[m]));
      part[m] = _mm256_mul_ps(sum, _mm256_loadu_ps(x + m * kFloats + kStep));
    }
  }
};

template <class T>
bool prepare_words_as(const Product& p, float* x) {
  const WordTable* const table = words_of(p.code);
  if (!table) return false;
  for (int64_t k = 0; k < p.k; k += kStep)
    for (int64_t m = 0; m < p.m; m++, x += Words::kFloats) {
      const T* const in = static_cast<const T*>(p.A) + m * p.lda + k;
      __m256 values[8], most = _mm256_setzero_ps();
      for (int i = 0; i < 8; i++) {
        values[i] = load_some(in + 8 * i, std::max<int64_t>(0, p.k - k - 8 * i));
        most = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), values[i]), most);  // the second, if one is NaN
        if (_mm256_movemask_ps(_mm256_cmp_ps(values[i], values[i], _CMP_UNORD_Q))) return false;
      }
      const float top = largest(most);
      float up, scale;
      if (!word_scales(*table, top, up, scale)) return false;
      const float least = top * least_rest(std::is_same_v<T, half>);
      __m256 rest = _mm256_setzero_ps();
      for (int i = 0; i < 8; i++)
        rest = _mm256_add_ps(rest, _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), values[i]), _mm256_set1_ps(least / 8)));
      if (sum_of(rest) < least) return false;
      __m256 words[2][8];  // dwords of whole numbers
      for (int i = 0; i < 8; i++) {
        const __m256 y = _mm256_mul_ps(values[i], _mm256_set1_ps(up));
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;  // whatever the thread's mode
        const __m256 high = _mm256_round_ps(y, kNearest), rest_of = _mm256_sub_ps(y, high);
        const __m256 low = _mm256_round_ps(_mm256_mul_ps(rest_of, _mm256_set1_ps(1 << kLowBits)), kNearest);
        words[0][i] = _mm256_castsi256_ps(_mm256_cvtps_epi32(high));
        words[1][i] = _mm256_castsi256_ps(_mm256_cvtps_epi32(low));
      }
      auto* out = reinterpret_cast<__m256i*>(x);
      for (int part = 0; part < 2; part++)
        for (int nibble = 0; nibble < 2; nibble++) {
          __m256i sixteen[4];  // of 16 elements those that nibbles stand for, as dwords
          for (int i = 0; i < 4; i++) {
            const __m256 a = words[part][2 * i], b = words[part][2 * i + 1];
            const __m256 its = nibble ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);
            sixteen[i] = _mm256_permute4x64_epi64(_mm256_castps_si256(its), 0xd8);
          }
          for (int q = 0; q < 2; q++)
            _mm256_storeu_si256(out++, _mm256_permute4x64_epi64(_mm256_packs_epi32(sixteen[q], sixteen[q + 2]), 0xd8));
        }
      _mm256_storeu_ps(x + kStep, _mm256_set1_ps(scale));
    }
  return true;
}
bool prepare_words(const Product& p, float* x) {
  return p.dtype == BNB_FLOAT16 ? prepare_words_as<half>(p, x) : prepare_words_as<bfloat16>(p, x);
}

template <int M>
void run_words_of(const Product& p, const float* x, int64_t first, int64_t last) {
  if (p.dtype == BNB_FLOAT16) return run_as<M, half, Words>(p, x, first, last);
  run_as<M, bfloat16, Words>(p, x, first, last);
}
