// int8 activations by products of unsigned and signed bytes, for vectors of kWide dwords: after int8_activations.h. An instruction
// set's file says what a vector is (load_words, broadcast_word, load_floats, store_floats, broadcast, to_floats, fused), how many
// rows a tile has and how many panels it meets at once (kRows, kPanels), and has quantized, dot_bytes and panel.

constexpr int64_t kQuads = kBlock / 4;
constexpr int64_t kVectors = kPanel / kWide;  // of a panel's column
static_assert(kVectors == 1 || kPanels == 1);
// Of a block: of tiles for each row, and of a panel. Blocks lie closer than kElement says, lest half of the first cache is left
// out.
constexpr int64_t kTileBlock = kBlock + 8, kPanelBlock = kPanel * (kBlock + 4);

// Of each block [kBlock / 4][height][4], then the scales, then what sums of products begin with.
template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, char* tile) {
  // Of 8 elements the even ones come first: the high halves of their codes' bytes.
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15), offset = _mm_set1_epi8(-128);
  char* block = tile + first * height * kElement;
  for (int64_t k = first; k < last; k += kBlock, block += height * kTileBlock) {
    int32_t* const quads = reinterpret_cast<int32_t*>(block);
    float* const scales = reinterpret_cast<float*>(block + height * kBlock);
    int32_t* const sums = reinterpret_cast<int32_t*>(scales + height);
    for (int64_t r = 0; r < height; r++) {
      scales[r] = 0;
      alignas(16) int8_t codes[kBlock] = {};
      if (r < rows) scales[r] = quantized(static_cast<const T*>(p.A) + (row + r) * p.lda + k, codes);
      __m128i sum = _mm_setzero_si128();  // of codes + 128
      for (int64_t i = 0; i < kBlock; i += 16) {
        const __m128i its = _mm_load_si128(reinterpret_cast<const __m128i*>(codes + i));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_xor_si128(its, offset), _mm_setzero_si128()));
        alignas(16) int32_t ordered[4];
        _mm_store_si128(reinterpret_cast<__m128i*>(ordered), _mm_shuffle_epi8(its, order));
        for (int64_t q = 0; q < 4; q++) quads[(i / 4 + q) * height + r] = ordered[q];
      }
      // The look-ups give code + 128: as much too much as 128 times the codes' sum.
      sums[r] = 128 * (128 * static_cast<int32_t>(kBlock) - _mm_extract_epi32(sum, 0) - _mm_extract_epi32(sum, 2));
    }
  }
}

// Vectors of columns, `apart` bytes from each other. A panel is, of each block, [kBlock / 4][kPanel][4] of unsigned bytes, then the
// scales.
template <int ROWS, int VECTORS>
void tile_of(const char* a, const char* b, int64_t apart, int64_t k, float* c, int64_t width) {
  for (int64_t from = 0; from < k; from += kBlock, a += ROWS * kTileBlock, b += kPanelBlock) {
    const int32_t* quads = reinterpret_cast<const int32_t*>(a);
    const float* const scales = reinterpret_cast<const float*>(a + ROWS * kBlock);
    const int32_t* const sums = reinterpret_cast<const int32_t*>(scales + ROWS);
    Words sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int i = 0; i < VECTORS; i++) sum[r][i] = broadcast_word(sums[r]);
#pragma GCC unroll 4
    for (int64_t q = 0; q < kQuads; q++, quads += ROWS) {
      Words codes[VECTORS];
#pragma GCC unroll 2
      for (int i = 0; i < VECTORS; i++) codes[i] = load_words(b + i * apart + q * 4 * kPanel);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int i = 0; i < VECTORS; i++) sum[r][i] = dot_bytes(sum[r][i], codes[i], broadcast_word(quads[r]));
    }
#pragma GCC unroll 2
    for (int i = 0; i < VECTORS; i++) {
      const auto scale = load_floats(reinterpret_cast<const float*>(b + i * apart + kBlock * kPanel));
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        float* const to = c + r * width + i * kWide;
        store_floats(to, fused(to_floats(sum[r][i]) * scale, broadcast(scales[r]), load_floats(to)));
      }
    }
  }
}

template <int VECTORS, int... ROWS>
constexpr auto tiles(std::integer_sequence<int, ROWS...>) {
  return std::array{&tile_of<ROWS + 1, VECTORS>...};
}

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, int64_t,
              float* C) {
  constexpr auto kTiles = tiles<kPanels * kVectors>(std::make_integer_sequence<int, kRows>());
  constexpr auto kTilesOfOne = tiles<kVectors>(std::make_integer_sequence<int, kRows>());
  const char* const a = static_cast<const char*>(tile);
  const char* const b = static_cast<const char*>(panels);
  const int64_t width = count * kPanel, apart = kVectors > 1 ? 4 * kWide : stride;
  int64_t i = 0;
  for (; i + kPanels <= count; i += kPanels) kTiles[height - 1](a, b + i * stride, apart, k, C + i * kPanel, width);
  for (; i < count; i++) kTilesOfOne[height - 1](a, b + i * stride, apart, k, C + i * kPanel, width);
}
