// Panels of bfloat16 pairs, [k / 2][kPanel][2]: after avx512.h, and avx512_panel.h for panel_of_pairs, inside the
// region of an instruction set with AVX512-BF16.
// A weight is code * scale, rounded once: CUDA's.

// Two columns of k, of which the low half and the high half of a vector are, lane by lane.
__m512i interleaved(__m512i halves) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                         19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, halves);
}
__m512i pairs_of(__m512 even, __m512 odd) { return interleaved((__m512i)_mm512_cvtne2ps_pbh(odd, even)); }

// ---- parts ----------------------------------------------------------------------------------------------------------
// A value of more bits than bfloat16's is the sum of PARTS that are bfloat16: two hold all of a float16, and 16 bits of a weight.
// One is the value, rounded, as CUDA's.

// The largest part first. What is not finite is the last alone, which meets but the first of the other side: inf * 0 is no number.
// So inf * inf is none either, here.
template <int PARTS>
void split(__m512 x, __m256i (&part)[PARTS]) {
  static_assert(PARTS <= 2);
  if constexpr (PARTS == 2) {
    constexpr int kNotFinite = 0x99;
    const __m512 most = _mm512_set1_ps(0x1.fep127f), least = _mm512_set1_ps(-0x1.fep127f);
    const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(x, kNotFinite));
    const __m512 near = _mm512_maskz_max_ps(finite, _mm512_min_ps(x, most), least);
    part[0] = (__m256i)_mm512_cvtneps_pbh(near);
    x = _mm512_mask_sub_ps(x, finite, x, widened(part[0]));
  }
  part[PARTS - 1] = (__m256i)_mm512_cvtneps_pbh(x);
}

// The same two columns, part by part.
template <int PARTS>
void pairs_of_parts(__m512 even, __m512 odd, __m512i (&pairs)[PARTS]) {
  if constexpr (PARTS == 1) {
    pairs[0] = pairs_of(even, odd);
  } else {
    __m256i of_even[PARTS], of_odd[PARTS];
    split(even, of_even);
    split(odd, of_odd);
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) pairs[i] = interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(of_even[i]), of_odd[i], 1));
  }
}

// ---- panels ---------------------------------------------------------------------------------------------------------
template <int MULTIPLE>
void fill_up(char* panel, int64_t k) {
  for (; k % MULTIPLE; k += 2) _mm512_store_si512(panel + k / 2 * 64, _mm512_setzero_si512());
}

template <int MULTIPLE>
void panel_of_pairs(const PanelOfB& b, void* out) {
  const __m512 code = _mm512_loadu_ps(b.code);
  char* const pairs = static_cast<char*>(out);
  for_each_dword(b, [&](int64_t k, __m512i dword, __m512 scale) {
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
      const __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(dword, 4 * j + 4), code);
      const __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(dword, 4 * j), code);
      _mm512_store_si512(pairs + (k + j) / 2 * 64, pairs_of(_mm512_mul_ps(even, scale), _mm512_mul_ps(odd, scale)));
    }
  });
  fill_up<MULTIPLE>(pairs, b.k);
}

// One panel for each part.
template <int PARTS, int MULTIPLE>
void convert_to_pairs(const float* values, int64_t k, void* out) {
  const int64_t part_bytes = ceil_div(k, MULTIPLE) * MULTIPLE * kPanel * 2;
  for (int64_t i = 0; i < k; i += 2) {
    __m512i pairs[PARTS];
    pairs_of_parts(_mm512_loadu_ps(values + i * kPanel),
                   i + 1 < k ? _mm512_loadu_ps(values + (i + 1) * kPanel) : _mm512_setzero_ps(), pairs);
#pragma GCC unroll 2
    for (int j = 0; j < PARTS; j++) _mm512_store_si512(static_cast<char*>(out) + j * part_bytes + i / 2 * 64, pairs[j]);
  }
  for (int j = 0; j < PARTS; j++) fill_up<MULTIPLE>(static_cast<char*>(out) + j * part_bytes, k + k % 2);
}

// Panels of B's transpose, one for each part: two rows of B make a row of pairs. It is the table of weights, code * scale, that is
// split or rounded: of the first row in the lower 16 words, of the second in the upper ones.
template <int PARTS, int MULTIPLE>
void columns_of_pairs(const ColumnsOfB& b, void* out) {
  constexpr int kWide = 4;  // panels that are looked up together: 32 bytes of a row
  const __m512 code = _mm512_loadu_ps(b.code);
  const int64_t filled = ceil_div(b.rows, MULTIPLE) * MULTIPLE, part_bytes = filled * kPanel * 2;
  const int64_t blocks = ceil_div(b.panels, b.of_block);
  // Of two bytes, one of each row, four codes: the even column's of both rows, and the odd one's.
  const __m512i nibble = _mm512_set1_epi64(0x0008'0000'000c'0004);
  const __m512i low = _mm512_set1_epi16(15), of_second = _mm512_set1_epi32(16 << 16);
  const __m512i fourfold =
      _mm512_set_epi16(7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i words[kWide];
#pragma GCC unroll 4
  for (int i = 0; i < kWide; i++) words[i] = _mm512_add_epi16(fourfold, _mm512_set1_epi16(static_cast<int16_t>(8 * i)));
  for (int64_t r = 0; r < b.rows; r += 2) {
    const bool both = r + 1 < b.rows;
    const uint8_t* const first = b.codes + r * b.stride;
    const uint8_t* const second = both ? first + b.stride : first;
    prefetch_columns(b, first);
    prefetch_columns(b, second);
    for (int64_t block = 0; block < blocks; block++) {
      const float* const scales = b.scales + r * blocks + block;
      __m256i of_first_row[PARTS], of_second_row[PARTS] = {};
      split(_mm512_mul_ps(code, _mm512_set1_ps(scales[0])), of_first_row);
      if (both) split(_mm512_mul_ps(code, _mm512_set1_ps(scales[blocks])), of_second_row);
      __m512i table[PARTS];
#pragma GCC unroll 2
      for (int i = 0; i < PARTS; i++) table[i] = _mm512_inserti64x4(_mm512_castsi256_si512(of_first_row[i]), of_second_row[i], 1);
      const int64_t end = std::min(b.panels, (block + 1) * b.of_block);
      for (int64_t panel = block * b.of_block; panel < end; panel += kWide) {
        const int64_t these = std::min<int64_t>(kWide, end - panel), at = panel * kPanel / 2;
        const __mmask8 mask = static_cast<__mmask8>((1 << these) - 1);
        const __m512i bytes_of_first = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi64(mask, first + at));
        const __m512i bytes_of_second = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi64(mask, second + at));
        const __m512i bytes = _mm512_or_si512(bytes_of_first, _mm512_slli_epi16(bytes_of_second, 8));
        char* to = static_cast<char*>(out) + panel * b.panel_stride + r * 32;
#pragma GCC unroll 4
        for (int i = 0; i < kWide; i++, to += b.panel_stride) {
          if (i >= these) break;
          const __m512i shifted = _mm512_srlv_epi16(_mm512_permutexvar_epi16(words[i], bytes), nibble);
          const __m512i index = _mm512_ternarylogic_epi32(low, shifted, of_second, 0xea);  // low & shifted | of_second
#pragma GCC unroll 2
          for (int j = 0; j < PARTS; j++) _mm512_store_si512(to + j * part_bytes, _mm512_permutexvar_epi16(index, table[j]));
        }
      }
    }
  }
  for (int64_t panel = 0; panel < b.panels; panel++)
    for (int i = 0; i < PARTS; i++)
      fill_up<MULTIPLE>(static_cast<char*>(out) + panel * b.panel_stride + i * part_bytes, b.rows + b.rows % 2);
}
