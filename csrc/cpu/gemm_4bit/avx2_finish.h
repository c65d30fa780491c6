// Results, from C [rows of A][columns]: after avx2.h, inside the region of an instruction set with AVX2.

template <class T>
void finish_as(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  const T* const bias = static_cast<const T*>(p.bias);
  for (int64_t r = 0; r < rows; r++) {
    T* const out = static_cast<T*>(p.out) + (row + r) * p.ldc + n;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
      __m256 sum = _mm256_loadu_ps(C + r * width + i);
      if (bias) sum = _mm256_add_ps(sum, load(bias + n + i));
      store(out + i, sum);
    }
    for (; i < columns; i++) out[i] = from_float<T>(C[r * width + i] + (bias ? to_float(bias[n + i]) : 0.0f));
  }
}
void finish(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  with_dtype(p.dtype, [&](auto zero) { finish_as<decltype(zero)>(p, C, width, row, rows, n, columns); });
}
