// Quantisation to int8 for every instruction set: included by its file after lanes_<isa>.h and int8_lanes_<isa>.h.

// The nearest whole number in the low byte, halves to even; |x| < 2^22. NaN and infinity give 0, but a NaN that began as
// fp32: adding 1.5 * 2^23 leaves the number in the low bits, and theirs are zero.
BNB_INLINE Lanes nearest(Lanes x) { return x + broadcast(12582912.0f); }
BNB_INLINE Lanes without_nan(Lanes x) { return x == x ? x : broadcast(0); }

// body(pointer to kLanes values at column c, their number): whole vectors, then a copy of the rest.
template <class T, class Body>
BNB_INLINE void across(const T* row, int64_t cols, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) body(row + c, c, std::integral_constant<int, kLanes>());
  if (c < cols) {
    T rest[kLanes] = {};
    __builtin_memcpy(rest, row + c, static_cast<size_t>(cols - c) * sizeof(T));
    body(rest, c, static_cast<int>(cols - c));
  }
}

BNB_INLINE void store_codes(int8_t* to, Lanes codes, int count) {
  if (count == kLanes) return store_low_bytes(to, codes);
  int8_t bytes[kLanes];
  store_low_bytes(bytes, codes);
  __builtin_memcpy(to, bytes, static_cast<size_t>(count));
}

template <class T, bool SPARSE>
void quantize_rows(const VectorQuant& q, int64_t first, int64_t last) {
  const Lanes threshold = broadcast(q.threshold);
  for (int64_t r = first; r < last; r++) {
    const T* const row = static_cast<const T*>(q.A) + r * q.cols;
    int8_t* const codes = q.out + r * q.cols;
    constexpr int kChains = 4;
    Lanes tops[kChains], peaks[kChains];  // without outliers, with them
    for (int i = 0; i < kChains; i++) tops[i] = peaks[i] = broadcast(0);
    const auto look = [&](Lanes size, Lanes& top, Lanes& peak) __attribute__((always_inline)) {
      if (SPARSE) {
        peak = larger(size, peak);
        size = size < threshold ? size : broadcast(0);
      }
      top = larger(size, top);
    };
    int64_t c = 0;
    for (; c + kChains * kLanes <= q.cols; c += kChains * kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; i++) look(magnitude(load(row + c + i * kLanes)), tops[i], peaks[i]);
    }
    across(row + c, q.cols - c, [&](const T* x, int64_t, auto) { look(magnitude(load(x)), tops[0], peaks[0]); });
    for (int i = 1; i < kChains; i++) tops[0] = larger(tops[i], tops[0]), peaks[0] = larger(peaks[i], peaks[0]);
    const float top = largest(tops[0]);
    q.stats[r] = top;
    const Lanes scale = broadcast(scale_of_row(top));
    const auto code = [&](Lanes x) __attribute__((always_inline)) {
      const Lanes scaled = x * scale;
      return nearest(std::is_same_v<T, float> ? without_nan(scaled) : scaled);  // its NaN may have low bits
    };
    if (!SPARSE || !(largest(peaks[0]) >= q.threshold)) {
      across(row, q.cols, [&](const T* x, int64_t at, auto count) { store_codes(codes + at, code(load(x)), count); });
      continue;
    }
    across(row, q.cols, [&](const T* x, int64_t at, auto count) {
      const Lanes value = load(x), size = magnitude(value);
      if (!any_at_least(size, threshold)) return store_codes(codes + at, code(value), count);
      store_codes(codes + at, code(size >= threshold ? broadcast(0) : value), count);
      for (int i = 0; i < count; i++)  // of a byte that is set, several threads may say so
        if (__builtin_fabsf(to_float(x[i])) >= q.threshold) __atomic_store_n(q.outliers + at + i, 1, __ATOMIC_RELAXED);
    });
  }
}

template <class T>
void column_maxima(const VectorQuant& q, int64_t first, int64_t last, float* tops) {
  const bool all = !(q.threshold > 0);
  for (int64_t c = 0; c < q.cols; c++) tops[c] = 0;
  for (int64_t r = first; r < last; r++)
    across(static_cast<const T*>(q.A) + r * q.cols, q.cols, [&](const T* x, int64_t at, auto count) {
      Lanes size = magnitude(load(x));
      if (!all) size = size >= broadcast(q.threshold) ? broadcast(0) : size;
      const auto more = [&](Lanes top) { return size > top ? size : size == size ? top : size; };
      if (count == kLanes) return store(tops + at, more(load(tops + at)));
      float rest[kLanes] = {};
      __builtin_memcpy(rest, tops + at, static_cast<size_t>(count) * sizeof(float));
      store(rest, more(load(rest)));
      __builtin_memcpy(tops + at, rest, static_cast<size_t>(count) * sizeof(float));
    });
}

// round(T(A[r, c] * 127) / stats[c]); a product that T cannot hold is not rounded. A column far from 1 is scaled together
// with its maximum, so that the product stays in range.
template <class T>
void quantize_columns(const VectorQuant& q, int64_t first, int64_t last) {
  const bool all = !(q.threshold > 0);
  const Lanes infinity = broadcast(__builtin_inff()), one = broadcast(1);
  for (int64_t r = first; r < last; r++)
    across(static_cast<const T*>(q.A) + r * q.cols, q.cols, [&](const T* x, int64_t at, auto count) {
      float rest[kLanes] = {};
      const float* stats = q.stats + at;
      if (count != kLanes) {
        __builtin_memcpy(rest, stats, static_cast<size_t>(count) * sizeof(float));
        stats = rest;
      }
      const Lanes value = load(x), top = load(stats);
      const Lanes factor = top < broadcast(0x1p-60f) ? broadcast(0x1p60f) : top > broadcast(0x1p60f) ? broadcast(0x1p-60f) : one;
      const Lanes product = value * factor * broadcast(127);
      const Lanes in_T = rounded<T>(product);
      Lanes code = without_nan((magnitude(in_T) < infinity ? in_T : product) / (top * factor));
      if (!all) code = magnitude(value) >= broadcast(q.threshold) ? broadcast(0) : code;
      store_codes(q.out + r * q.cols + at, nearest(code), count);
    });
}

inline void run_rows(const VectorQuant& q, int64_t first, int64_t last) {
  with_dtype(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    q.outliers ? quantize_rows<T, true>(q, first, last) : quantize_rows<T, false>(q, first, last);
  });
}
inline void run_maxima(const VectorQuant& q, int64_t first, int64_t last, float* tops) {
  with_dtype(q.dtype, [&](auto zero) { column_maxima<decltype(zero)>(q, first, last, tops); });
}
inline void run_columns(const VectorQuant& q, int64_t first, int64_t last) {
  with_dtype(q.dtype, [&](auto zero) { quantize_columns<decltype(zero)>(q, first, last); });
}
constexpr VectorQuantKernels kKernels{&run_rows, &run_maxima, &run_columns};
