// Optimizers with 8-bit states in blocks of 256: dequantise, update, find the new absmax, quantise again, in one pass.
//
// A sub-group takes a block and keeps it in registers; the block's largest magnitudes are found by shuffles. Codes are
// found on GPUs as map_8bit.h has it; on CPU devices by a binary search over the midpoints of the map, which lie in the
// lanes of the sub-group, as the map itself does: lanes_8bit.h.
#include "lanes_8bit.h"
#include "map_8bit.h"
#include "optimizer.h"

namespace bnb {

constexpr int kBlock = 256;

// A quantisation map of 256 increasing values and the bounds between them, as lanes_8bit.h has them.
struct MapMemory {
  float value[256];
  float bound[256];
};

struct Map {
  Rows values, bounds;
  u32 first_nonnegative;

  BNB_INLINE float value(u32 code) const { return value_in_rows(values, code); }

  // The code of the nearest value; a tie goes to the even code, NaN to 0. In uniform control flow.
  BNB_INLINE u32 nearest(float x) const { return bounds_up_to(bounds, x); }
};

// `code` of a signed state, moved to the neighbour if it has not the state's sign.
BNB_INLINE u32 with_sign(u32 code, float state, u32 first_nonnegative) {
  const bool same = (code < first_nonnegative) == (state < 0);  // -0 is no negative
  return (same ? code : code + (state > 0 ? 1 : 255)) & 255;
}

// The same for GPUs.
template <bool SIGNED>
struct CellMapMemory {
  float value[256];
  CellMemory<SIGNED> cells;
};

template <bool SIGNED>
struct CellMap {
  const CellMapMemory<SIGNED>* memory;
  Cells<SIGNED> cells;
  u32 first_nonnegative;

  BNB_INLINE float value(u32 code) const { return memory->value[code]; }

  // The codes of N values, by the same rules as Map's. -0 is none of them. In uniform control flow.
  template <int N>
  BNB_INLINE void nearest(const float (&x)[N], u32 (&codes)[N]) const {
    if (cells.steps < Cells<SIGNED>::kUnordered) {
      cells.find(x, codes);
      return;
    }
#pragma unroll
    for (int j = 0; j < N; j++) codes[j] = 0;
#pragma unroll 1
    for (u32 step = 128; step; step /= 2) {  // rare: Map's search, whatever the order of the values
#pragma unroll
      for (int j = 0; j < N; j++) {
        const u32 i = codes[j] + step - 1;
        const float middle = (memory->value[i] + memory->value[i + 1]) * 0.5f;
        codes[j] += (step > 1 ? x[j] >= middle : x[j] > middle) ? step : 0;
      }
    }
  }
};

template <int GROUP_SIZE, int SUBG_SIZE, bool SIGNED>
BNB_INLINE CellMap<SIGNED> cell_map_of(CellMapMemory<SIGNED>& memory, const float* quantiles) {
  for (u32 k = local_id(); k < 256; k += GROUP_SIZE) memory.value[k] = quantiles[k];
  barrier();
  CellMap<SIGNED> map{&memory, {}, 0};
  const float* const value = memory.value;
  map.cells = cells_of<GROUP_SIZE, SUBG_SIZE>(memory.cells, value,
                                              [&](u32 i) __attribute__((always_inline)) { return midpoint_of_8bit(value, i); });
  if constexpr (SIGNED) {
    float negative = 0;
#pragma unroll 1
    for (int i = 0; i < 256; i += SUBG_SIZE) negative += static_cast<float>(bits_as<u32>(value[i + lane_id()]) >> 31);
    map.first_nonnegative = static_cast<u32>(sub_group_sum<SUBG_SIZE>(negative));
  }
  return map;
}

template <int NUM_PER_TH, bool SIGNED>
struct map_memory {
  using type = CellMapMemory<SIGNED>;
};
template <bool SIGNED>
struct map_memory<1, SIGNED> {
  using type = MapMemory;
};
template <int NUM_PER_TH, bool SIGNED>
using MapFor = typename map_memory<NUM_PER_TH, SIGNED>::type;

// A map of a work-group, with the memory for it. In uniform control flow.
template <int GROUP_SIZE, int SUBG_SIZE>
BNB_INLINE Map map_for(MapMemory& memory, const float* quantiles) {
  static_assert(SUBG_SIZE == 16 && 256 % GROUP_SIZE == 0);
  for (u32 begin = 0; begin < 256; begin += GROUP_SIZE) {
    const u32 k = begin + local_id();
    memory.value[place_in_rows(k)] = quantiles[k];
    const u32 i = sought_at(k) < 255 ? sought_at(k) : 254;
    memory.bound[k] = (quantiles[i] + quantiles[i + 1]) * 0.5f;
  }
  barrier();
  float negative = 0;
  for (int i = 0; i < 256; i += SUBG_SIZE) negative += static_cast<float>(bits_as<u32>(memory.value[i + lane_id()]) >> 31);
  return {{memory.value}, {memory.bound}, static_cast<u32>(sub_group_sum<SUBG_SIZE>(negative))};
}
template <int GROUP_SIZE, int SUBG_SIZE, bool SIGNED>
BNB_INLINE CellMap<SIGNED> map_for(CellMapMemory<SIGNED>& memory, const float* quantiles) {
  return cell_map_of<GROUP_SIZE, SUBG_SIZE>(memory, quantiles);
}

// x / absmax as x * above * below, also where 1 / absmax is no number.
struct Scale {
  float above, below;
  BNB_INLINE explicit Scale(float absmax) {
    above = absmax < 0x1p-60f ? 0x1p+64f : 1.0f;
    below = 1.0f / (absmax * above);
  }
  BNB_INLINE float operator()(float x) const { return x * above * below; }
};

// COUNT of a lane's elements of a block. WHOLE: NUM_PER_TH neighbours and again; else one by one, those before n.
template <int NUM_PER_TH, int SUBG_SIZE, bool WHOLE, int COUNT = kBlock / SUBG_SIZE>
struct Slots {
  static constexpr int kCount = COUNT;
  i64 base, n;

  template <class T, class Out>
  BNB_INLINE void load(const T* from, Out (&to)[kCount]) const {
    const u32 lane = lane_id();
    if constexpr (WHOLE && NUM_PER_TH > 1) {
#pragma unroll
      for (int s = 0; s < kCount; s += NUM_PER_TH) {
        const auto values = reinterpret_cast<const pack<T, NUM_PER_TH>*>(from + base + s * SUBG_SIZE)[lane];
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) to[s + j] = convert<Out>(values.v[j]);
      }
    } else {
#pragma unroll
      for (int s = 0; s < kCount; s++) {
        if constexpr (WHOLE)
          to[s] = convert<Out>((from + base + s * SUBG_SIZE)[lane]);
        else
          to[s] = valid(s) ? convert<Out>(from[base + s * SUBG_SIZE + lane]) : Out{};
      }
    }
  }
  template <class T, class In>
  BNB_INLINE void store(T* to, const In (&from)[kCount]) const {
    const u32 lane = lane_id();
    if constexpr (WHOLE && NUM_PER_TH > 1) {
#pragma unroll
      for (int s = 0; s < kCount; s += NUM_PER_TH) {
        pack<T, NUM_PER_TH> values;
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) values.v[j] = back<T>(from[s + j]);
        reinterpret_cast<pack<T, NUM_PER_TH>*>(to + base + s * SUBG_SIZE)[lane] = values;
      }
    } else {
#pragma unroll
      for (int s = 0; s < kCount; s++) {
        if constexpr (WHOLE)
          (to + base + s * SUBG_SIZE)[lane] = back<T>(from[s]);
        else if (valid(s))
          to[base + s * SUBG_SIZE + lane] = back<T>(from[s]);
      }
    }
  }
  BNB_INLINE void clear(float (&)[kCount]) const {}
  BNB_INLINE bool valid(int s) const { return WHOLE || base + s * SUBG_SIZE + lane_id() < n; }

  template <class Out, class T>
  static BNB_INLINE Out convert(T x) {
    if constexpr (__is_same(Out, u32))
      return x;
    else
      return to_float(x);
  }
  template <class T, class In>
  static BNB_INLINE T back(In x) {
    if constexpr (__is_same(In, u32))
      return static_cast<T>(x);
    else
      return from_float<T>(x);
  }
};

// The same for GPUs, where whole blocks and others share the code between loads and stores.
template <int NUM_PER_TH, int SUBG_SIZE>
struct AnySlots {
  static constexpr int kCount = kBlock / SUBG_SIZE;
  i64 base, n;
  bool whole;

  template <class T, class Out>
  BNB_INLINE void load(const T* from, Out (&to)[kCount]) const {
    if (whole)
      Slots<NUM_PER_TH, SUBG_SIZE, true>{base, n}.load(from, to);
    else
      Slots<NUM_PER_TH, SUBG_SIZE, false>{base, n}.load(from, to);
  }
  template <class T, class In>
  BNB_INLINE void store(T* to, const In (&from)[kCount]) const {
    if (whole)
      Slots<NUM_PER_TH, SUBG_SIZE, true>{base, n}.store(to, from);
    else
      Slots<NUM_PER_TH, SUBG_SIZE, false>{base, n}.store(to, from);
  }
  // Zero for elements that are none.
  BNB_INLINE void clear(float (&x)[kCount]) const {
    if (whole) return;
#pragma unroll
    for (int s = 0; s < kCount; s++) x[s] = Slots<NUM_PER_TH, SUBG_SIZE, false>{base, n}.valid(s) ? x[s] : 0.0f;
  }
  BNB_INLINE bool valid(int) const { return true; }  // once clear has been called
};

// The largest magnitude of a lane's elements.
template <class Slots, int N>
BNB_INLINE float largest_of(const Slots& slots, float (&state)[N]) {
  slots.clear(state);
  float largest = 0;
#pragma unroll
  for (int s = 0; s < N; s++)
    if (slots.valid(s)) largest = larger(magnitude(state[s]), largest);
  return largest;
}

// The codes of states, given the largest magnitude in their block.
template <bool SIGNED, int N>
BNB_INLINE void quantize(const CellMap<SIGNED>& map, float absmax, const float (&state)[N], u32 (&codes)[N]) {
  float x[N];
  // As Scale has it, where one factor will do; adding 0 makes 0 of -0.
  if (absmax >= 0x1p-120f) {
    const float factor = 1.0f / absmax;
#pragma unroll
    for (int s = 0; s < N; s++) x[s] = __builtin_fmaf(state[s], factor, 0.0f);
  } else {
    const Scale scale(absmax);
#pragma unroll
    for (int s = 0; s < N; s++) x[s] = scale(state[s]) + 0.0f;
  }
  map.nearest(x, codes);
  if constexpr (SIGNED) {
#pragma unroll
    for (int s = 0; s < N; s++) codes[s] = with_sign(codes[s], state[s], map.first_nonnegative);
  }
}

template <bool SIGNED, int N>
BNB_INLINE void quantize(const Map& map, float absmax, const float (&state)[N], u32 (&codes)[N]) {
  const Scale scale(absmax);
#pragma unroll
  for (int s = 0; s < N; s++) {
    codes[s] = map.nearest(scale(state[s]));
    if constexpr (SIGNED) codes[s] = with_sign(codes[s], state[s], map.first_nonnegative);
  }
}

template <int I>
struct Constant {
  static constexpr int value = I;
};
template <int COUNT, class Body>
BNB_INLINE void for_each(Body&& body) {
  body(Constant<0>{});
  if constexpr (COUNT > 1) body(Constant<1>{});
  if constexpr (COUNT > 2) body(Constant<2>{});
}

// A block on a GPU: its new states stay in registers. See for_blocks.
template <int SUBG_SIZE, int STATES, class Slots, class Update, class Code>
BNB_INLINE void one_block(const Slots& slots, Update&& update, Code&& code, float (&absmax)[STATES]) {
  float states[STATES][Slots::kCount];
  update(slots, states);
  for_each<STATES>([&](auto i) __attribute__((always_inline)) {
    absmax[i.value] = sub_group_max<SUBG_SIZE>(largest_of(slots, states[i.value]));
    code(slots, i, absmax[i.value], states[i.value]);
  });
}

// On a CPU they lie in local memory, the first cache there, and a few elements a lane are taken at a time: all at once would
// be more instructions than the cache holds.
template <int SUBG_SIZE, int STATES, bool WHOLE, class Update, class Code>
BNB_INLINE void one_block_by_parts(i64 base, i64 n, float* kept, Update&& update, Code&& code, float (&absmax)[STATES]) {
  constexpr int kAtOnce = 4;
  using Part = Slots<1, SUBG_SIZE, WHOLE, kAtOnce>;
  const u32 lane = lane_id();
  float largest[STATES] = {};
#pragma unroll 1
  for (int at = 0; at < kBlock; at += kAtOnce * SUBG_SIZE) {
    const Part part{base + at, n};
    float states[STATES][kAtOnce];
    update(part, states);
    for_each<STATES>([&](auto i) __attribute__((always_inline)) {
      largest[i.value] = larger(largest_of(part, states[i.value]), largest[i.value]);
#pragma unroll
      for (int s = 0; s < kAtOnce; s++) (kept + i.value * kBlock + at + s * SUBG_SIZE)[lane] = states[i.value][s];
    });
  }
  for_each<STATES>([&](auto i) __attribute__((always_inline)) { absmax[i.value] = sub_group_max<SUBG_SIZE>(largest[i.value]); });
#pragma unroll 1
  for (int at = 0; at < kBlock; at += kAtOnce * SUBG_SIZE) {
    for_each<STATES>([&](auto i) __attribute__((always_inline)) {
      float states[kAtOnce];
#pragma unroll
      for (int s = 0; s < kAtOnce; s++) states[s] = (kept + i.value * kBlock + at + s * SUBG_SIZE)[lane];
      code(Part{base + at, n}, i, absmax[i.value], states);
    });
  }
}

// Goes through every block of this sub-group; a work-group has TILE_SIZE elements. update(slots, index, states) makes new
// states of some elements of block `index`; code(slots, i, absmax, states) stores the codes of the i-th; then come their new
// absmaxes in done(index, absmax).
template <int STATES, int TILE_SIZE, int NUM_PER_TH, int GROUP_SIZE, int SUBG_SIZE, class Update, class Code, class Done>
BNB_INLINE void for_blocks(i64 n, i32 wide, Update&& update, Code&& code, Done&& done) {
  constexpr int kSubGroups = GROUP_SIZE / SUBG_SIZE;
  constexpr bool kOnCPU = NUM_PER_TH == 1;
  static_assert(TILE_SIZE % (kBlock * kSubGroups) == 0 && kBlock % (SUBG_SIZE * NUM_PER_TH) == 0);
  static_assert(!kOnCPU || kSubGroups == 1);
  const i64 first = group_id() * (TILE_SIZE / kBlock) + (kOnCPU ? 0 : sub_group_id());
  for (int t = 0; t < TILE_SIZE / kBlock; t += kSubGroups) {
    const i64 index = first + t, base = index * kBlock;
    if (base < n) {
      const bool whole = wide && base + kBlock <= n;
      const auto indexed = [&](const auto& slots, auto& states) __attribute__((always_inline)) { update(slots, index, states); };
      float absmax[STATES];
      if constexpr (kOnCPU) {
        static local_memory<float[STATES * kBlock]> kept;
        if (whole)
          one_block_by_parts<SUBG_SIZE, STATES, true>(base, n, kept.data, indexed, code, absmax);
        else
          one_block_by_parts<SUBG_SIZE, STATES, false>(base, n, kept.data, indexed, code, absmax);
      } else {
        one_block<SUBG_SIZE>(AnySlots<NUM_PER_TH, SUBG_SIZE>{base, n, whole}, indexed, code, absmax);
      }
      if (lane_id() == 0) done(index, absmax);
    }
  }
}

// absmax3 and the codes behind state1's n are ADEMAMIX's second row of state1.
template <class T, int OPTIMIZER, int TILE_SIZE, int NUM_PER_TH, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, kNarrowRegisters || OPTIMIZER == ADEMAMIX ? 256 : 128)
kOptimizerStatic8bit2StateBlockwise(T* p, const T* g, u8* state1, u8* state2, const float* quantiles1, const float* quantiles2,
                                    float* absmax1, float* absmax2, float* absmax3, float beta1, float beta2, float beta3,
                                    float alpha, float eps, float weight_decay, float correction1, float correction2, float lr,
                                    float gnorm_scale, i32 skip_zeros, i32 wide, i64 n) {
  static_assert(OPTIMIZER == ADAM || OPTIMIZER == ADEMAMIX);
  static local_memory<MapFor<NUM_PER_TH, true>> memory1;
  static local_memory<MapFor<NUM_PER_TH, false>> memory2;
  const auto map1 = map_for<GROUP_SIZE, SUBG_SIZE>(memory1.data, quantiles1);
  const auto map2 = map_for<GROUP_SIZE, SUBG_SIZE>(memory2.data, quantiles2);
  const Step step{beta1, beta2, beta3, alpha, eps, weight_decay, correction1, correction2, false, lr, 1.0f};
  constexpr int kStates = OPTIMIZER == ADEMAMIX ? 3 : 2;

  const auto update = [&](const auto& slots, i64 index, auto& states) __attribute__((always_inline)) {
    constexpr int N = sizeof(states[0]) / sizeof(float);
    float gs[N], ps[N];
    u32 c1[N], c2[N], c3[N] = {};
    slots.load(g, gs);
    slots.load(state1, c1);
    slots.load(state2, c2);
    if constexpr (OPTIMIZER == ADEMAMIX) slots.load(state1 + n, c3);
    slots.load(p, ps);
    const float old1 = absmax1[index], old2 = absmax2[index], old3 = OPTIMIZER == ADEMAMIX ? absmax3[index] : 0.0f;
#pragma unroll
    for (int s = 0; s < N; s++) {
      const float s1 = map1.value(c1[s]) * old1, s2 = map2.value(c2[s]) * old2;
      const float s3 = OPTIMIZER == ADEMAMIX ? map1.value(c3[s]) * old3 : 0.0f;
      float q = ps[s], t1 = s1, t2 = s2, t3 = s3;
      update_2state<OPTIMIZER>(step, gs[s] * gnorm_scale, q, t1, t2, t3);
      const bool usable = finite(gs[s]), keep = skip_zeros && gs[s] == 0;
      ps[s] = keep || !usable ? ps[s] : q;
      states[0][s] = keep ? s1 : usable ? t1 : 0.0f, states[1][s] = keep ? s2 : usable ? t2 : 0.0f;
      if constexpr (OPTIMIZER == ADEMAMIX) states[2][s] = keep ? s3 : usable ? t3 : 0.0f;
    }
    slots.store(p, ps);
  };
  const auto code = [&](const auto& slots, auto i, float absmax, const auto& state) __attribute__((always_inline)) {
    u32 codes[sizeof(state) / sizeof(float)];
    if constexpr (i.value == 1)
      quantize<false>(map2, absmax, state, codes);
    else
      quantize<true>(map1, absmax, state, codes);
    slots.store(i.value == 0 ? state1 : i.value == 1 ? state2 : state1 + n, codes);
  };
  const auto done = [&](i64 index, const float (&absmax)[kStates]) __attribute__((always_inline)) {
    absmax1[index] = absmax[0], absmax2[index] = absmax[1];
    if constexpr (OPTIMIZER == ADEMAMIX) absmax3[index] = absmax[2];
  };
  for_blocks<kStates, TILE_SIZE, NUM_PER_TH, GROUP_SIZE, SUBG_SIZE>(n, wide, update, code, done);
}

template <class T, int OPTIMIZER, int TILE_SIZE, int NUM_PER_TH, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, kNarrowRegisters ? 256 : 128)
kOptimizerStatic8bit1StateBlockwise(T* p, const T* g, u8* state1, const float* quantiles1, float* absmax1, float beta1, float beta2,
                                    float eps, float weight_decay, i32 first, float lr, float gnorm_scale, i32 skip_zeros, i32 wide,
                                    i64 n) {
  static local_memory<MapFor<NUM_PER_TH, true>> memory1;
  const auto map1 = map_for<GROUP_SIZE, SUBG_SIZE>(memory1.data, quantiles1);
  const Step step{beta1, beta2, 0, 0, eps, weight_decay, 0, 0, first != 0, lr, 1.0f};

  const auto update = [&](const auto& slots, i64 index, auto& states) __attribute__((always_inline)) {
    constexpr int N = sizeof(states[0]) / sizeof(float);
    float gs[N], ps[N];
    u32 c1[N];
    slots.load(g, gs);
    slots.load(state1, c1);
    slots.load(p, ps);
    const float old1 = absmax1[index];
#pragma unroll
    for (int s = 0; s < N; s++) {
      const float s1 = map1.value(c1[s]) * old1;
      float q = ps[s], t1 = s1;
      update_1state<T, OPTIMIZER>(step, gs[s] * gnorm_scale, &gs[s], q, t1);
      const bool keep = skip_zeros && gs[s] == 0;
      ps[s] = keep ? ps[s] : q, states[0][s] = keep ? s1 : t1;
    }
    slots.store(p, ps);
  };
  const auto code = [&](const auto& slots, auto, float absmax, const auto& state) __attribute__((always_inline)) {
    u32 codes[sizeof(state) / sizeof(float)];
    quantize<true>(map1, absmax, state, codes);
    slots.store(state1, codes);
  };
  const auto done = [&](i64 index, const float (&absmax)[1]) __attribute__((always_inline)) { absmax1[index] = absmax[0]; };
  for_blocks<1, TILE_SIZE, NUM_PER_TH, GROUP_SIZE, SUBG_SIZE>(n, wide, update, code, done);
}

}  // namespace bnb
