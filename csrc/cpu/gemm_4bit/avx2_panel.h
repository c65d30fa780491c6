// Codes of 8 rows side by side: after avx2.h and transpose_avx2.h, inside the region of an instruction set with AVX2.

// put(row, k, dword, scale) for each 8 codes of the panel's rows `row` to row + 7: a dword of each, lane by lane, and their scales.
template <class Put>
inline __attribute__((always_inline)) void for_each_dword(const PanelOfB& b, const Put& put) {
  for (int64_t row = 0; row < kPanel; row += 8)
    for (int64_t from = 0; from < b.k; from += 64) {
      const int64_t dwords = std::min<int64_t>(8, (b.k - from) / 8);
      const __m256i mask = first_dwords(dwords);
      __m256i rows[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        const uint8_t* const codes = b.rows[row + i] + from / 2;
        rows[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(codes), mask);
        _mm_prefetch(reinterpret_cast<const char*>(codes + b.ahead), _MM_HINT_T1);
      }
      transpose(rows);
      alignas(32) __m256i columns[8];
      for (int i = 0; i < 8; i++) columns[i] = rows[i];
      const float* scales = b.scales + from / b.granule * kPanel + row;
      int64_t left = b.granule - from % b.granule;
      for (int64_t i = 0; i < dwords; i++) {
        if (left == 0) {
          scales += kPanel;
          left = b.granule;
        }
        put(row, from + 8 * i, columns[i], _mm256_loadu_ps(scales));
        left -= 8;
      }
    }
}
