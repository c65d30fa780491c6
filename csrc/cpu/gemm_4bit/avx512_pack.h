// Tiles of A: after avx512.h and transpose_avx512.h, inside the region of an instruction set with AVX512.

// [dword][height]: dwords first to last of `rows` rows of A. load(r, i) has 16 of row r from dword i on, zeros behind the last.
template <class Load>
void pack_dwords(int64_t rows, int64_t height, int64_t first, int64_t last, void* tile, const Load& load) {
  const __mmask16 mask = first_lanes(height);  // a tile has at most 16 rows
  for (int64_t i = first; i < last; i += 16) {
    __m512i row[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) row[r] = r < rows ? load(r, i) : _mm512_setzero_si512();
    transpose(row);
    alignas(64) __m512i columns[16];
    for (int j = 0; j < 16; j++) columns[j] = row[j];
    int32_t* const out = static_cast<int32_t*>(tile) + i * height;
    for (int64_t j = 0, count = std::min<int64_t>(16, last - i); j < count; j++)
      _mm512_mask_storeu_epi32(out + j * height, mask, columns[j]);
  }
}
