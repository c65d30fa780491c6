// Results, from C [rows of A][columns]: after avx512.h, inside the region of an instruction set with AVX512.

template <class T>
void finish_as(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  const T* const bias = static_cast<const T*>(p.bias);
  for (int64_t r = 0; r < rows; r++) {
    T* const out = static_cast<T*>(p.out) + (row + r) * p.ldc + n;
    for (int64_t i = 0; i < columns; i += 16) {
      const __mmask16 mask = first_lanes(columns - i);
      __m512 sum = _mm512_loadu_ps(C + r * width + i);
      if (bias) sum = _mm512_add_ps(sum, load(bias + n + i, mask));
      store(out + i, mask, sum);
    }
  }
}
void finish(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  if (p.dtype == BNB_FLOAT32) return finish_as<float>(p, C, width, row, rows, n, columns);
  if (p.dtype == BNB_FLOAT16) return finish_as<half>(p, C, width, row, rows, n, columns);
  finish_as<bfloat16>(p, C, width, row, rows, n, columns);
}
