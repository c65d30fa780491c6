// int8_vectorwise_dequant for every instruction set: included by its file after lanes_<isa>.h and int8_lanes_<isa>.h.

inline void run(const VectorDequant& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t r = first; r < last; r++) {
      const int8_t* const from = d.A + r * d.cols;
      T* const to = static_cast<T*>(d.out) + r * d.cols;
      const Lanes scale = broadcast(d.stats[r * d.stride]);
      int64_t c = 0;
      for (; c + kLanes <= d.cols; c += kLanes) store(to + c, load(from + c) * scale * broadcast(kOneBy127));
      if (c < d.cols) {
        const int64_t left = std::min<int64_t>(kLanes, d.cols - c);
        int8_t codes[kLanes] = {};
        T out[kLanes];
        __builtin_memcpy(codes, from + c, static_cast<size_t>(left));
        store(out, load(codes) * scale * broadcast(kOneBy127));
        __builtin_memcpy(to + c, out, static_cast<size_t>(left) * sizeof(T));
      }
    }
  });
}
