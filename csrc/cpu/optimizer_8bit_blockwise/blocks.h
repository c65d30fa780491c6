// The walk through blocks, for every instruction set: included like lanes_<isa>.h, after it and optimizer_step.h.

__attribute__((noinline)) void dequantize(const StateMap& map, const uint8_t* codes, float absmax, float* states) {
  for (int i = 0; i < kStateBlock; i += kLanes) store(states + i, values_of(map.value, codes + i) * absmax);
}

// state / absmax as state * above * below, also where 1 / absmax is no number.
template <bool SIGNED>
__attribute__((noinline)) void quantize(const StateMap& map, const float* states, float absmax, uint8_t* codes) {
  const float above = absmax < 0x1p-60f ? 0x1p+64f : 1.0f, below = 1.0f / (absmax * above);
  const auto value = [&](int i, Lanes& state) {
    state = load(states + i);
    return state * above * below;
  };
  static_assert(kStateBlock <= kAtOnce);
  codes_of<SIGNED>(map.thresholds, map.first_nonnegative, kStateBlock, value, codes);
}

// A block's elements.
template <class T>
struct Block {
  T* p;
  const T* g;
  uint8_t *state1, *state2, *state3;
};

// Block `index`, of which `block` holds kStateBlock elements and `size` count.
template <class T, Optimizer OPTIMIZER>
void update_block(const Optimizer8bit& o, const Block<T>& block, int64_t index, int size) {
  constexpr bool kTwo = has_two_states(OPTIMIZER), kThree = OPTIMIZER == ADEMAMIX;
  alignas(64) float states1[kStateBlock], states2[kTwo ? kStateBlock : 1], states3[kThree ? kStateBlock : 1];
  const auto dequantize_state = [&](const StateMap& map, const uint8_t* codes, float absmax, float* states) {
    dequantize(map, codes, absmax, states);
    for (int i = size; i < kStateBlock; i++) states[i] = 0;
  };
  dequantize_state(*o.map1, block.state1, o.absmax1[index], states1);
  if constexpr (kTwo) dequantize_state(*o.map2, block.state2, o.absmax2[index], states2);
  if constexpr (kThree) dequantize_state(*o.map1, block.state3, o.absmax3[index], states3);
  Lanes most1 = broadcast(0), most2 = broadcast(0), most3 = broadcast(0);
  const Step step = o.step;
  for (int i = 0; i < kStateBlock; i += kLanes) {
    Lanes p = load(block.p + i), s1 = load(states1 + i), s2 = broadcast(0), s3 = broadcast(0);
    if constexpr (kTwo) s2 = load(states2 + i);
    if constexpr (kThree) s3 = load(states3 + i);
    update<T, OPTIMIZER, 8>(step, load(block.g + i), p, s1, s2, s3);
    store(block.p + i, p);
    store(states1 + i, s1);
    most1 = larger(magnitude(s1), most1);
    if constexpr (kTwo) store(states2 + i, s2), most2 = larger(magnitude(s2), most2);
    if constexpr (kThree) store(states3 + i, s3), most3 = larger(magnitude(s3), most3);
  }
  quantize<true>(*o.map1, states1, o.absmax1[index] = largest(most1), block.state1);
  if constexpr (kTwo) quantize<false>(*o.map2, states2, o.absmax2[index] = largest(most2), block.state2);
  if constexpr (kThree) quantize<true>(*o.map1, states3, o.absmax3[index] = largest(most3), block.state3);
}

// The last block, with room behind its elements. What stands there are zeros, which change no statistics.
template <class T, Optimizer OPTIMIZER>
void update_short_block(const Optimizer8bit& o, const Block<T>& block, int64_t index, int size) {
  T p[kStateBlock] = {}, g[kStateBlock] = {};
  uint8_t codes[3][kStateBlock] = {};
  uint8_t* const states[3] = {block.state1, block.state2, block.state3};
  const auto count = static_cast<size_t>(size);
  __builtin_memcpy(p, block.p, count * sizeof(T));
  __builtin_memcpy(g, block.g, count * sizeof(T));
  for (int s = 0; s < 3; s++)
    if (states[s]) __builtin_memcpy(codes[s], states[s], count);
  update_block<T, OPTIMIZER>(o, {p, g, codes[0], codes[1], codes[2]}, index, size);
  __builtin_memcpy(block.p, p, count * sizeof(T));
  for (int s = 0; s < 3; s++)
    if (states[s]) __builtin_memcpy(states[s], codes[s], count);
}

template <class T, Optimizer OPTIMIZER>
void update_blocks(const Optimizer8bit& o, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; index++) {
    const int64_t base = index * kStateBlock;
    const auto at = [&](uint8_t* codes) { return codes ? codes + base : nullptr; };
    const Block<T> block{static_cast<T*>(o.p) + base, static_cast<const T*>(o.g) + base, at(o.state1), at(o.state2), at(o.state3)};
    if (base + kStateBlock <= o.n) {
      update_block<T, OPTIMIZER>(o, block, index, kStateBlock);
    } else {
      update_short_block<T, OPTIMIZER>(o, block, index, static_cast<int>(o.n - base));
    }
  }
}

void run(const Optimizer8bit& o, int64_t first, int64_t last) {
  with_dtype(o.dtype, [&](auto zero) {
    with_optimizer(o.optimizer, [&]<Optimizer OPTIMIZER>() { update_blocks<decltype(zero), OPTIMIZER>(o, first, last); });
  });
}
