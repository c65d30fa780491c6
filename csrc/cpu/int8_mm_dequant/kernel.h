// int8_mm_dequant for every instruction set: included by its file after lanes_<isa>.h and int8_lanes_<isa>.h.

template <class T, class Bias>
void rows_of(const MmDequant& d, int64_t first, int64_t last) {
  const auto* const bias = static_cast<const Bias*>(d.bias);
  for (int64_t r = first; r < last; r++) {
    const int32_t* const from = d.A + r * d.cols;
    const T* const addend = d.addend ? static_cast<const T*>(d.addend) + r * d.cols : nullptr;
    T* const to = static_cast<T*>(d.out) + r * d.cols;
    const Lanes row_scale = broadcast(d.row_stats[r]);
    const auto step = [&](const int32_t* sums, const float* stats, const Bias* offset, const T* more, T* out) {
      const Lanes x = load(sums) * row_scale * load(stats);
      store(out, fused(x, broadcast(kMMDequant), (offset ? load(offset) : broadcast(0)) + (more ? load(more) : broadcast(0))));
    };
    int64_t c = 0;
    for (; c + kLanes <= d.cols; c += kLanes)
      step(from + c, d.col_stats + c, bias ? bias + c : nullptr, addend ? addend + c : nullptr, to + c);
    if (c < d.cols) {
      const int64_t left = std::min<int64_t>(kLanes, d.cols - c);
      int32_t sums[kLanes] = {};
      float stats[kLanes] = {};
      Bias offset[kLanes] = {};
      T more[kLanes] = {}, out[kLanes];
      const auto take = [&](auto* into, const auto* values) {
        if (values) __builtin_memcpy(into, values + c, static_cast<size_t>(left) * sizeof *into);
      };
      take(sums, from), take(stats, d.col_stats), take(offset, bias), take(more, addend);
      step(sums, stats, offset, more, out);
      __builtin_memcpy(to + c, out, static_cast<size_t>(left) * sizeof *out);
    }
  }
}

inline void run(const MmDequant& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (!d.bias) return rows_of<T, float>(d, first, last);
    with_dtype(d.bias_dtype, [&](auto of_bias) { rows_of<T, decltype(of_bias)>(d, first, last); });
  });
}
