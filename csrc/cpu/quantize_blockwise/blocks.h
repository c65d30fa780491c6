// The walk through blocks, for every instruction set: included like lanes_<isa>.h, after it and after
//   packed_64<DATA_TYPE>(from, scale0, scale1, to): 64 elements at `from`, times scale0 in the first half and scale1 in
//   the second, as codes in 32 bytes at `to`. No product is infinite, and denormals are zeros (FlushDenormals).

// The largest magnitude of a block of `blocksize` of which n elements are there; the others count as zeros. NaN is no
// maximum: a block of nothing else has the lowest float, as with CUDA. Denormals are zeros.
template <class T>
BNB_INLINE float absmax_of(const T* from, int64_t n, int64_t blocksize) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  Lanes most[4] = {broadcast(kLowest), broadcast(kLowest), broadcast(kLowest), broadcast(kLowest)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int j = 0; j < 4; j++) most[j] = larger(magnitude(load(from + i + j * kLanes)), most[j]);
  for (; i + kLanes <= n; i += kLanes) most[0] = larger(magnitude(load(from + i)), most[0]);
  if (i < n) {
    T rest[kLanes];
    for (T& each : rest) each = from[i];
    __builtin_memcpy(rest, from + i, static_cast<size_t>(n - i) * sizeof(T));
    most[0] = larger(magnitude(load(rest)), most[0]);
  }
  const float found = std::max(largest(larger(larger(most[0], most[1]), larger(most[2], most[3]))), n < blocksize ? 0.0f : kLowest);
  return std::fabs(found) < std::numeric_limits<float>::min() ? 0.0f : found;
}

template <int DATA_TYPE, class T>
void blocks_4bit(const Quantize& q, int64_t first, int64_t last) {
  constexpr int64_t kBlocks = 16, kInCache = 4096;  // blocks and elements: the reciprocals' latencies overlap
  const T* const A = static_cast<const T*>(q.A);
  const int64_t batch = std::clamp<int64_t>(kInCache / q.blocksize, 1, kBlocks);
  const int shift = __builtin_ctzll(static_cast<uint64_t>(q.blocksize));
  for (int64_t start = first; start < last; start += batch) {
    const int64_t count = std::min(batch, last - start), begin = start << shift, end = std::min(q.n, (start + count) << shift);
    float scales[kBlocks];
    float* const absmax = q.absmax + start;
    for (int64_t b = 0, i = begin; b < count; b++, i += q.blocksize)
      absmax[b] = absmax_of(A + i, std::min(q.blocksize, end - i), q.blocksize);
    for (int64_t b = 0; b < count; b++) scales[b] = block_scale(absmax[b]);
    const auto scale_at = [&](int64_t i) { return scales[(i - begin) >> shift]; };
    int64_t i = begin;
    for (; i + 64 <= end; i += 64) packed_64<DATA_TYPE>(A + i, broadcast(scale_at(i)), broadcast(scale_at(i + 32)), q.out + i / 2);
    if (i < end) {
      T rest[64] = {};
      uint8_t bytes[32];
      __builtin_memcpy(rest, A + i, static_cast<size_t>(end - i) * sizeof(T));
      packed_64<DATA_TYPE>(rest, broadcast(scale_at(i)), broadcast(scale_at(std::min(i + 32, end - 1))), bytes);
      __builtin_memcpy(q.out + i / 2, bytes, static_cast<size_t>(end - i + 1) / 2);
    }
  }
}

template <class T>
void blocks_8bit(const Quantize& q, int64_t first, int64_t last) {
  constexpr int64_t kFew = 8;  // elements that are not worth the time of 64
  for (int64_t block = first; block < last; block++) {
    const T* const from = static_cast<const T*>(q.A) + block * q.blocksize;
    uint8_t* const to = q.out + block * q.blocksize;
    const int64_t size = std::min(q.blocksize, q.n - block * q.blocksize);
    const float maximum = absmax_of(from, size, q.blocksize), scale = block_scale(maximum);
    q.absmax[block] = maximum;
    if (!q.thresholds) {
      for (int64_t i = 0; i < size; i++) to[i] = static_cast<uint8_t>(code_among(q.code, to_float(from[i]) * scale));
      continue;
    }
    const auto code = [&](const T* elements, int count, uint8_t* codes) {
      codes_of<false>(*q.thresholds, 0, count, [&](int j, Lanes&) { return load(elements + j) * broadcast(scale); }, codes);
    };
    int64_t i = 0;
    for (; i + kAtOnce <= size; i += kAtOnce) code(from + i, kAtOnce, to + i);
    if (const auto whole = static_cast<int>((size - i) & ~int64_t{63})) {
      code(from + i, whole, to + i);
      i += whole;
    }
    if (size - i > kFew) {
      T rest[64] = {};
      uint8_t codes[64];
      __builtin_memcpy(rest, from + i, static_cast<size_t>(size - i) * sizeof(T));
      code(rest, 64, codes);
      __builtin_memcpy(to + i, codes, static_cast<size_t>(size - i));
    } else {
      for (; i < size; i++) to[i] = static_cast<uint8_t>(q.thresholds->code_of(to_float(from[i]) * scale));
    }
  }
}

void run_4bit(const Quantize& q, int64_t first, int64_t last) {
  const FlushDenormals flush;
  with_dtype(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    q.data_type == BNB_NF4 ? blocks_4bit<BNB_NF4, T>(q, first, last) : blocks_4bit<BNB_FP4, T>(q, first, last);
  });
}
void run_8bit(const Quantize& q, int64_t first, int64_t last) {
  const FlushDenormals flush;
  with_dtype(q.dtype, [&](auto zero) { blocks_8bit<decltype(zero)>(q, first, last); });
}
