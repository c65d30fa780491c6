// Results where weights are the left operand, as they are stored: a tile is kRows rows of B and 64 bytes of each, and activations
// are the right one. So C is its transpose, in blocks of kRows rows of A: [row / kRows][column][kRows]. After avx512.h,
// ../transpose_avx512.h and amx.h, inside the region of AMX.

template <class T>
void finish_blocks_as(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  const T* const bias = static_cast<const T*>(p.bias);
  for (int64_t r = 0; r < rows; r += kRows)
    for (int64_t i = 0; i < columns; i += kPanel) {
      const __mmask16 mask = first_lanes(columns - i);
      const __m512 added = bias ? load(bias + n + i, mask) : _mm512_setzero_ps();
      __m512i sums[kRows];
#pragma GCC unroll 16
      for (int j = 0; j < kRows; j++) sums[j] = _mm512_load_si512(C + r * width + (i + j) * kRows);
      transpose(sums);
      alignas(64) __m512i in_rows[kRows];
      for (int j = 0; j < kRows; j++) in_rows[j] = sums[j];
      for (int64_t j = 0; j < std::min<int64_t>(kRows, rows - r); j++) {
        const __m512 sum = _mm512_castsi512_ps(in_rows[j]);
        store(static_cast<T*>(p.out) + (row + r + j) * p.ldc + n + i, mask, bias ? _mm512_add_ps(sum, added) : sum);
      }
    }
}
void finish_blocks(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  if (p.dtype == BNB_FLOAT32) return finish_blocks_as<float>(p, C, width, row, rows, n, columns);
  if (p.dtype == BNB_FLOAT16) return finish_blocks_as<half>(p, C, width, row, rows, n, columns);
  finish_blocks_as<bfloat16>(p, C, width, row, rows, n, columns);
}
