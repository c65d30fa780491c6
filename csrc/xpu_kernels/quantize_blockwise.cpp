// Blockwise quantisation: absmax of each block, and each element scaled by its reciprocal and rounded to a code.
//
// absmax[b] = max |A[i]| over block b, NaN apart; x = A[i] * (1 / absmax[b]) in fp32; out[i] = the code of x. Every
// decision is that of bitsandbytes' CUDA kernels: which way ties go, blocks of zeros, NaN, the reciprocal's rounding.
// One pass: between the maximum and the coding, a block's elements stay in registers (in the first cache on a CPU).
// 4-bit codes are found by a binary search among thresholds that the lanes of a sub-group hold.
#include "device.h"

namespace bnb {

// ---- thresholds -----------------------------------------------------------------------------------------------------
// The thresholds of a 4-bit type as a search tree of which node i has children 2 i (not greater) and 2 i + 1 (greater).
struct Tree {
  float at[16];
};
constexpr Tree tree_of(int data_type) {
  Tree tree{};
  for (int depth = 0; depth < (data_type == NF4 ? 4 : 3); depth++)
    for (int j = 0; j < 1 << depth; j++) {
      const int rank = ((2 * j + 1) << ((data_type == NF4 ? 3 : 2) - depth)) - 1;
      tree.at[(1 << depth) + j] = data_type == NF4 ? (kNF4[rank] + kNF4[rank + 1]) * 0.5f : kFP4Bounds[rank];
    }
  return tree;
}
constexpr Tree kNF4Tree = tree_of(NF4), kFP4Tree = tree_of(FP4);

// The code of x in a 4-bit type; `in_lane` is node lane % 16 of its tree. Every lane must arrive here.
// Comparisons with NaN are false: NaN becomes code 0.
template <int DATA_TYPE>
BNB_INLINE u32 code_of_4bit(float in_lane, float x) {
  if constexpr (DATA_TYPE == NF4) {
    u32 i = x > kNF4Tree.at[1] ? 3 : 2;
    i = 2 * i + (x > shuffle(in_lane, i));
    i = 2 * i + (x > shuffle(in_lane, i));
    i = 2 * i + (x > shuffle(in_lane, i));
    return i & 15;
  } else {
    const float magnitude = __builtin_fabsf(x);
    u32 i = magnitude > kFP4Tree.at[1] ? 3 : 2;
    i = 2 * i + (magnitude > shuffle(in_lane, i));
    i = 2 * i + (magnitude > shuffle(in_lane, i));
    i ^= (i & 2) << 1;  // the order of magnitudes is 0 1 6 7 4 5 2 3
    return (i & 7) | (x < 0.0f ? 8 : 0);
  }
}

// The code of x among 256 values: CUDA's search, which is of odd values first, then of the midpoints to the neighbours
// of an even one. `value(i)` reads a value, `first(i)` one of those at 15, 31, 47 ...
template <class First, class Value>
BNB_INLINE u32 code_of_8bit(float x, const First& first, const Value& value) {
  u32 pivot = 127;
#pragma unroll
  for (u32 step = 64; step >= 8; step /= 2) pivot = x > first(pivot) ? pivot + step : pivot - step;
#pragma unroll
  for (u32 step = 4; step; step /= 2) pivot = x > value(pivot) ? pivot + step : pivot - step;
  const float middle = value(pivot);
  const bool up = x > middle;
  const u32 neighbour = up ? pivot + 1 : pivot ? pivot - 1 : 0;
  const float bound = (value(neighbour) + middle) * 0.5f;
  return (up ? x > bound : x < bound) ? neighbour : pivot;
}

// The next float above x, which is finite.
BNB_INLINE float next_up(float x) {
  const u32 bits = bits_as<u32>(x);
  return bits_as<float>(bits << 1 == 0 ? 1 : bits >> 31 ? bits - 1 : bits + 1);
}

// Node i (1 to 255) of the search tree that is equal to CUDA's search where the values increase. Ties go to even codes:
// a value belongs to an even code or to one above it from the threshold on, and to an odd one beyond the threshold. The
// latter are the leaves of the tree.
BNB_INLINE float node_of_8bit(const float* code, u32 i) {
  const u32 depth = 31 - __builtin_clz(i);
  const u32 rank = ((2 * i + 1) << (7 - depth)) - 257;
  const float middle = (code[rank] + code[rank + 1]) * 0.5f;
  return rank % 2 && !(middle > code[rank]) ? next_up(code[rank]) : middle;
}
BNB_INLINE u32 code_in_tree(const float* tree, float x) {
  // The first two levels read what is the same for all elements, and stays in registers.
  const float low = tree[2], high = tree[3];
  const bool upper = x >= tree[1];
  u32 i = (upper ? 6 : 4) + (x >= (upper ? high : low));
#pragma unroll
  for (int depth = 2; depth < 7; depth++) i = 2 * i + (x >= tree[i]);
  return (2 * i + (x > tree[i])) & 255;
}

// ---- statistics -----------------------------------------------------------------------------------------------------
// 1 / absmax, denormal, zero or infinite where that is so. Correctly rounded, or, for 4-bit types, like the instruction
// that CUDA has for it: 1 / absmax + a quarter of a unit in the last place, correctly rounded. Devices divide more or
// less well, so the quotient is put right by exact residues.
template <bool FAST>
BNB_INLINE float reciprocal(float absmax) {
  constexpr float kUlp = 0x1p-24f, kShift = FAST ? kUlp / 4 : 0.0f;
  u32 bits = bits_as<u32>(absmax);
  i32 exponent = static_cast<i32>(bits >> 23) - 127;
  if (exponent == 128) return 0.0f;
  if (exponent == -127) {
    if (bits <= 0x200000) return bits_as<float>(0x7f800000);  // from 2^-128 down the result is infinite
    bits = bits_as<u32>(static_cast<float>(bits));            // the denormal times 2^149
    exponent = static_cast<i32>(bits >> 23) - 127 - 149;
  }
  const float m = bits_as<float>((bits & 0x7fffff) | 0x3f800000);
  const float r = 1.0f / m;
  float q = __builtin_fmaf(r, __builtin_fmaf(-m, r, 1.0f), r);
  float unit = kUlp;
  if (exponent >= 126) {  // a denormal result has a coarser last place
    unit = exponent == 126 ? 2 * kUlp : 4 * kUlp;
    q = static_cast<float>(static_cast<i32>(q / unit + 0.5f)) * unit;
  }
  const float residue = __builtin_fmaf(-m, q, 1.0f);
  if (__builtin_fmaf(-m, unit / 2 - kShift, residue) > 0.0f)
    q += unit;
  else if (__builtin_fmaf(m, unit / 2 + kShift, residue) < 0.0f)
    q -= unit;
  if (exponent >= 126) return bits_as<float>(static_cast<u32>(q / unit));
  if (exponent < -127) return q * 0x1p127f * 2.0f;
  return q * bits_as<float>(static_cast<u32>(127 - exponent) << 23);
}

// The larger of a magnitude and the maximum so far; NaN is no maximum.
BNB_INLINE float larger(float magnitude, float maximum) {
#ifdef __NVPTX__
  return __builtin_fmaxf(magnitude, maximum);
#else
  return magnitude > maximum ? magnitude : maximum;
#endif
}

// The maximum over groups of `lanes` lanes (a power of two), in each of their lanes.
template <int SUBG_SIZE>
BNB_INLINE float lanes_max(float value, i32 lanes) {
#pragma unroll
  for (i32 mask = 1; mask < SUBG_SIZE; mask *= 2)
    if (mask < lanes) value = larger(shuffle_xor(value, mask), value);
  return value;
}

// ---- loads ----------------------------------------------------------------------------------------------------------
// Eight neighbours.
BNB_INLINE pack<half, 8> load8(const half* p) { return *reinterpret_cast<const pack<half, 8>*>(p); }
BNB_INLINE pack<bfloat16, 8> load8(const bfloat16* p) { return *reinterpret_cast<const pack<bfloat16, 8>*>(p); }
BNB_INLINE pack<float, 8> load8(const float* p) {
  const auto low = reinterpret_cast<const pack<float, 4>*>(p)[0], high = reinterpret_cast<const pack<float, 4>*>(p)[1];
  return {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
}

// Two neighbours a lane, for sub-groups of 16.
template <class T>
BNB_INLINE void load2(const T* p, u32 lane, float& x0, float& x1) {
  const u32 both = reinterpret_cast<const u32*>(p)[lane];
  x0 = to_float(bits_as<T>(static_cast<u16>(both)));
  x1 = to_float(bits_as<T>(static_cast<u16>(both >> 16)));
}
BNB_INLINE void load2(const float* p, u32 lane, float& x0, float& x1) {
  // Two unit-stride loads and shuffles: the CPU's vectoriser would make a gather of a load with stride two.
  const float low = p[lane], high = (p + 16)[lane];
  const u32 from = 2 * lane & 15;
  const float low0 = shuffle(low, from), high0 = shuffle(high, from);
  const float low1 = shuffle(low, from + 1), high1 = shuffle(high, from + 1);
  x0 = lane < 8 ? low0 : high0;
  x1 = lane < 8 ? low1 : high1;
}

// ---- kernels --------------------------------------------------------------------------------------------------------
// A work-group of GROUP_SIZE quantises TILE_SIZE elements. NUM_PER_TH:
//   8  for GPUs: how many neighbours a lane takes at once. A tile lies in registers; blocksize is 2^shift, from 8 to
//      TILE_SIZE. What a sub-group holds of a block is reduced by shuffles, what a work-group holds in local memory.
//   2  for CPU devices (SUBG_SIZE 16): a sub-group walks through a stretch of its own, block by block; blocksize is
//      2^shift, from 32 to the stretch.
//   1  any blocksize, 8-bit types alone. `shift` is how many lanes share a block: 1, SUBG_SIZE, or GROUP_SIZE if
//      TILE_SIZE is greater than 1; a work-group takes GROUP_SIZE / shift blocks, whatever their size.
// `vectorised` says that A and out are aligned to what a lane moves. `code` is read for General8bit alone.
template <class T, int TILE_SIZE, int NUM_PER_TH, int DATA_TYPE, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kQuantizeBlockwise(const float* code, const T* A, float* absmax, u8* out, i64 blocksize, i32 shift, i32 vectorised, i64 n) {
  constexpr bool kPacked = DATA_TYPE != General8bit;
  constexpr int kSubGroups = GROUP_SIZE / SUBG_SIZE;
  static_assert(NUM_PER_TH == 8 || NUM_PER_TH == 2 || (NUM_PER_TH == 1 && !kPacked));
  const u32 lane = lane_id();
  const float in_lane = DATA_TYPE == NF4   ? kNF4Tree.at[lane & 15]
                        : DATA_TYPE == FP4 ? kFP4Tree.at[lane & 15]
                                           : code[lane & 15 ? 16 * (lane & 15) - 1 : 0];
  const auto plain_8bit = [&](float x) __attribute__((always_inline)) {
    const auto value = [&](u32 i) __attribute__((always_inline)) { return code[i]; };
    return code_of_8bit(x, value, value);
  };

  if constexpr (NUM_PER_TH == 8) {
    constexpr int kSteps = TILE_SIZE / (GROUP_SIZE * 8), kSpan = SUBG_SIZE * 8, kSpans = TILE_SIZE / kSpan;
    static_assert(TILE_SIZE % (GROUP_SIZE * 8) == 0);
    const i64 tile = group_id() * TILE_SIZE;
    const bool whole = vectorised && tile + TILE_SIZE <= n;
    const u32 first = (sub_group_id() * SUBG_SIZE + lane) * 8;

    pack<T, 8> raw[kSteps];
    const T* const from = A + tile;
    if (whole) {
#pragma unroll
      for (int s = 0; s < kSteps; s++) raw[s] = load8(from + first + s * (GROUP_SIZE * 8));
    } else {
      const u32 inside = static_cast<u32>(n - tile < TILE_SIZE ? n - tile : TILE_SIZE);
#pragma unroll
      for (int s = 0; s < kSteps; s++)
#pragma unroll
        for (u32 v = 0; v < 8; v++) {
          const u32 i = first + s * (GROUP_SIZE * 8) + v;
          raw[s].v[v] = i < inside ? from[i] : T{};
        }
    }

    // A table of the work-group: what each lane does with it must not depend on what other sub-groups find.
    static local_memory<float[kPacked ? 1 : 256]> tree;
    bool increasing = true;
    if constexpr (!kPacked) {
      for (u32 i = local_id() + 1; i < 256; i += GROUP_SIZE) tree.data[i] = node_of_8bit(code, i);
      u32 faults = 0;
      for (u32 i = lane; i < 255; i += SUBG_SIZE)
        faults |= !(code[i] <= code[i + 1] && code[i] >= -0x1p126f && code[i + 1] <= 0x1p126f);
#pragma unroll
      for (u32 mask = 1; mask < SUBG_SIZE; mask *= 2) faults |= shuffle_xor(faults, mask);
      increasing = !faults;
    }

    float maximum[kSteps];
    const i32 lanes = static_cast<i32>(blocksize < kSpan ? blocksize / 8 : SUBG_SIZE);
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      maximum[s] = 0.0f;
#pragma unroll
      for (int v = 0; v < 8; v++) maximum[s] = larger(__builtin_fabsf(to_float(raw[s].v[v])), maximum[s]);
    }
#pragma unroll
    for (int s = 0; s < kSteps; s++) maximum[s] = lanes_max<SUBG_SIZE>(maximum[s], lanes);
    static local_memory<float[kSpans]> maxima;
    if (blocksize > kSpan) {
#pragma unroll
      for (int s = 0; s < kSteps; s++)
        if (lane == 0) maxima.data[s * kSubGroups + sub_group_id()] = maximum[s];
    }
    if (!kPacked || blocksize > kSpan) barrier();
    if (blocksize > kSpan) {
      const u32 spans = static_cast<u32>(blocksize / kSpan);
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
        const u32 begin = (s * kSubGroups + sub_group_id()) & ~(spans - 1);
        float m = maxima.data[begin + (lane & (spans - 1))];
        for (u32 j = lane + SUBG_SIZE; j < spans; j += SUBG_SIZE) m = larger(maxima.data[begin + j], m);
        maximum[s] = lanes_max<SUBG_SIZE>(m, SUBG_SIZE);
      }
    }

#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const u32 at = first + s * (GROUP_SIZE * 8);
      const float scale = reciprocal<kPacked>(maximum[s]);
      if (((static_cast<u32>(tile) + at) & static_cast<u32>(blocksize - 1)) == 0 && tile + at < n)
        absmax[(tile + at) >> shift] = maximum[s];
      if constexpr (kPacked) {
        u32 word = 0;
#pragma unroll
        for (int v = 0; v < 8; v++)
          word |= code_of_4bit<DATA_TYPE>(in_lane, to_float(raw[s].v[v]) * scale) << (8 * (v / 2) + (v % 2 ? 0 : 4));
        u8* const to = out + (tile >> 1);
        if (whole) {
          *reinterpret_cast<u32*>(to + (at >> 1)) = word;
        } else {
#pragma unroll
          for (int v = 0; v < 8; v += 2)
            if (tile + at + v < n) to[(at + v) >> 1] = static_cast<u8>(word >> 4 * v);
        }
      } else {
        u8* const to = out + tile;
        if (!increasing) {  // rare: from memory again, and not in as many copies as there are elements
#pragma unroll 1
          for (u32 i = at; i < at + 8 && tile + i < n; i++) to[i] = static_cast<u8>(plain_8bit(to_float(from[i]) * scale));
          continue;
        }
        pack<u8, 8> codes;
#pragma unroll
        for (int v = 0; v < 8; v++) codes.v[v] = static_cast<u8>(code_in_tree(tree.data, to_float(raw[s].v[v]) * scale));
        if (whole) {
          *reinterpret_cast<pack<u8, 8>*>(to + at) = codes;
        } else {
#pragma unroll
          for (int v = 0; v < 8; v++)
            if (tile + at + v < n) to[at + v] = codes.v[v];
        }
      }
    }

  } else if constexpr (NUM_PER_TH == 2) {
    static_assert(SUBG_SIZE == 16);
    constexpr int kStretch = TILE_SIZE / kSubGroups;
    const i64 begin = group_id() * TILE_SIZE + sub_group_id() * kStretch;
    const auto walked_8bit = [&](float x) __attribute__((always_inline)) {
      return code_of_8bit(
          x, [&](u32 i) __attribute__((always_inline)) { return shuffle(in_lane, (i + 1) / 16); },
          [&](u32 i) __attribute__((always_inline)) { return code[i]; });
    };
    // The codes of a whole block.
    const u32 size = static_cast<u32>(blocksize);
    const auto code_block = [&](const T* from, u8* to, float scale) __attribute__((always_inline)) {
#pragma unroll 2
      for (u32 t = 0; t < size; t += 32) {
        if constexpr (kPacked) {
          float x0, x1;
          load2(from + t, lane, x0, x1);
          (to + (t >> 1))[lane] = static_cast<u8>(code_of_4bit<DATA_TYPE>(in_lane, x0 * scale) << 4 |
                                                  code_of_4bit<DATA_TYPE>(in_lane, x1 * scale));
        } else {
          (to + t)[lane] = static_cast<u8>(walked_8bit(to_float((from + t)[lane]) * scale));
          (to + t + 16)[lane] = static_cast<u8>(walked_8bit(to_float((from + t + 16)[lane]) * scale));
        }
      }
    };
    // Up to 16 blocks at once, so that a lane's reciprocal is of a block of its own.
    const u32 most = kStretch >> shift, batch = most < 16 ? most : 16;
    for (i64 start = begin; start < begin + kStretch && start < n; start += static_cast<i64>(batch) << shift) {
      if (vectorised && start + (static_cast<i64>(batch) << shift) <= n) {
        float mine = 0.0f;
        for (u32 b = 0; b < batch; b++) {
          const T* const from = A + start + (b << shift);
          float m0 = 0.0f, m1 = 0.0f;
#pragma unroll 4
          for (u32 t = 0; t < size; t += 32) {
            m0 = larger(__builtin_fabsf(to_float((from + t)[lane])), m0);
            m1 = larger(__builtin_fabsf(to_float((from + t + 16)[lane])), m1);
          }
          m0 = lanes_max<16>(larger(m0, m1), 16);
          mine = lane == b ? m0 : mine;
        }
        const float scales = reciprocal<kPacked>(mine);
        if (lane < batch) (absmax + (start >> shift))[lane] = mine;
        for (u32 b = 0; b < batch; b++) {
          const i64 block = start + (b << shift);
          code_block(A + block, out + (kPacked ? block >> 1 : block), shuffle(scales, b));
        }
        continue;
      }
      for (i64 block = start; block < start + (static_cast<i64>(batch) << shift) && block < n; block += blocksize) {
        const T* const from = A + block;
        u8* const to = out + (kPacked ? block >> 1 : block);
        const u32 inside = static_cast<u32>(n - block < blocksize ? n - block : blocksize);
        float m = 0.0f;
        for (u32 t = 0; t < inside; t += 16)
          if (t + lane < inside) m = larger(__builtin_fabsf(to_float(from[t + lane])), m);
        m = lanes_max<16>(m, 16);
        const float scale = reciprocal<kPacked>(m);
        if constexpr (kPacked) {
          for (u32 t = 0; t < inside; t += 32) {
            const u32 i = t + 2 * lane;
            const float x0 = i < inside ? to_float(from[i]) : 0.0f, x1 = i + 1 < inside ? to_float(from[i + 1]) : 0.0f;
            const u32 high = code_of_4bit<DATA_TYPE>(in_lane, x0 * scale), low = code_of_4bit<DATA_TYPE>(in_lane, x1 * scale);
            if (i < inside) to[i >> 1] = static_cast<u8>(high << 4 | low);
          }
        } else {
          for (u32 t = 0; t < inside; t += 16) {
            const u32 i = t + lane;
            const u32 c = walked_8bit((i < inside ? to_float(from[i]) : 0.0f) * scale);
            if (i < inside) to[i] = static_cast<u8>(c);
          }
        }
        if (lane == 0) absmax[block >> shift] = m;
      }
    }

  } else {
    constexpr bool kLocal = TILE_SIZE > 1;
    static local_memory<float[kLocal ? kSubGroups : 1]> maxima;
    const i64 blocks = n / blocksize + (n % blocksize != 0);
    const i32 team = shift;
    const i64 block = team == 1           ? group_id() * GROUP_SIZE + sub_group_id() * SUBG_SIZE + lane
                      : team == SUBG_SIZE ? group_id() * kSubGroups + sub_group_id()
                                          : group_id();
    const u32 member = team == 1 ? 0 : team == SUBG_SIZE ? lane : sub_group_id() * SUBG_SIZE + lane;
    const i64 begin = block < blocks ? block * blocksize : n;
    const i64 size = n - begin < blocksize ? n - begin : blocksize;
    const T* const from = A + begin;
    float m = 0.0f;
    for (i64 i = member; i < size; i += team) m = larger(__builtin_fabsf(to_float(from[i])), m);
    if (team != 1) m = lanes_max<SUBG_SIZE>(m, SUBG_SIZE);
    if constexpr (kLocal) {
      if (team == GROUP_SIZE) {
        if (lane == 0) maxima.data[sub_group_id()] = m;
        barrier();
        for (int g = 0; g < kSubGroups; g++) m = larger(maxima.data[g], m);
      }
    }
    const float scale = reciprocal<false>(m);
    for (i64 i = member; i < size; i += team) (out + begin)[i] = static_cast<u8>(plain_8bit(to_float(from[i]) * scale));
    if (member == 0 && block < blocks) absmax[block] = m;
  }
}

}  // namespace bnb
