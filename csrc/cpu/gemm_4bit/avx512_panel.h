// Codes of 16 rows side by side: after avx512.h, inside the region of an instruction set with AVX512.

// put(k, dword, scale) for each 8 codes of the panel: a dword of each row, lane by lane, and their scales.
template <class Put>
inline __attribute__((always_inline)) void for_each_dword(const PanelOfB& b, const Put& put) {
  for (int64_t from = 0; from < b.k; from += 128) {
    const int64_t dwords = std::min<int64_t>(16, (b.k - from) / 8);
    const __mmask16 mask = first_lanes(dwords);
    __m512i rows[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      rows[i] = _mm512_maskz_loadu_epi32(mask, b.rows[i] + from / 2);
      _mm_prefetch(reinterpret_cast<const char*>(b.rows[i] + from / 2 + b.ahead), _MM_HINT_T1);
    }
    transpose(rows);
    alignas(64) __m512i columns[16];
    for (int i = 0; i < 16; i++) columns[i] = rows[i];
    const float* scales = b.scales + from / b.granule * kPanel;
    int64_t left = b.granule - from % b.granule;
    __m512 scale = _mm512_loadu_ps(scales);
    for (int64_t i = 0; i < dwords; i++) {
      if (left == 0) {
        scales += kPanel;
        scale = _mm512_loadu_ps(scales);
        left = b.granule;
      }
      put(from + 8 * i, columns[i], scale);
      left -= 8;
    }
  }
}
