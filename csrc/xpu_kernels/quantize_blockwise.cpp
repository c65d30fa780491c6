// Blockwise quantisation: absmax of each block, and each element scaled by its reciprocal and rounded to a code.
//
// absmax[b] = max |A[i]| over block b, NaN apart; x = A[i] * (1 / absmax[b]) in fp32; out[i] = the code of x. Every
// decision is that of bitsandbytes' CUDA kernels: which way ties go, blocks of zeros, NaN, denormals, the reciprocal's bits.
// One pass: between the maximum and the coding, a block's elements stay in registers (in the first cache on a CPU).
// 4-bit codes: on GPUs a polynomial says which threshold, held by a lane of the sub-group, is left to compare with; on a
// CPU a binary search among these thresholds is faster. 8-bit codes: map_8bit.h, and on a CPU CUDA's own search, in
// lanes_8bit.h.
#include "lanes_8bit.h"
#include "map_8bit.h"
#include "reciprocal.h"

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
      tree.at[(1 << depth) + j] = data_type == NF4 ? kNF4Bounds[rank] : kFP4Bounds[rank];
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

// The same for eight elements at once, packed; `in_lane` is threshold lane % 16 in increasing order, then infinity.
// The polynomial is within half of the number of thresholds below x, at every threshold: so after rounding, which adding
// 1.5 * 2^23 does, it is the code or one less.
constexpr Tree thresholds_of(int data_type) {
  Tree list{};
  for (int i = 0; i < 16; i++)
    list.at[i] = i >= (data_type == NF4 ? 15 : 7) ? __builtin_inff() : data_type == NF4 ? kNF4Bounds[i] : kFP4Bounds[i];
  return list;
}
constexpr Tree kNF4Thresholds = thresholds_of(NF4), kFP4Thresholds = thresholds_of(FP4);

template <int DATA_TYPE>
BNB_INLINE u32 pack_codes(float in_lane, const float (&values)[8]) {
  constexpr float kRound = 12582912.0f;
  u32 word = 0, bias = 0, negative = 0;
#pragma unroll
  for (int v = 0; v < 8; v++) {
    const int at = 8 * (v / 2) + (v % 2 ? 0 : 4);
    // NaN goes to the lowest code, where all comparisons are false.
    const float x = DATA_TYPE == NF4 ? larger(values[v], -1.0f) : larger(__builtin_fabsf(values[v]), 0.0f);
    float guess;
    if constexpr (DATA_TYPE == NF4)
      guess = __builtin_fmaf(__builtin_fmaf(__builtin_fmaf(-4.7526f, x, -0.44047f), x, 11.7275f), x, kRound + 7.0f);
    else
      guess = __builtin_fmaf(__builtin_fmaf(-4.608f, x, 11.2f), x, kRound);
    const u32 bits = bits_as<u32>(guess);
    word += (bits << at) + (x > shuffle(in_lane, bits & 15) ? 1u << at : 0u);
    bias += bits_as<u32>(kRound) << at;
    if (DATA_TYPE == FP4) negative |= values[v] < 0.0f ? 8u << at : 0u;
  }
  word -= bias;
  if (DATA_TYPE == FP4) word = (word ^ (word & 0x22222222) << 1) | negative;  // the order of magnitudes is 0 1 6 7 4 5 2 3
  return word;
}

// The code of x among 256 values: CUDA's search, which is of odd values first, then of the midpoints to the neighbours
// of an even one. On a CPU, whole blocks have it faster: code_in_rows.
BNB_INLINE u32 code_of_8bit(const float* value, float x) {
  u32 pivot = 127;
#pragma unroll
  for (u32 step = 64; step; step /= 2) pivot = x > value[pivot] ? pivot + step : pivot - step;
  const float middle = value[pivot];
  const bool up = x > middle;
  const u32 neighbour = up ? pivot + 1 : pivot ? pivot - 1 : 0;
  const float bound = (value[neighbour] + middle) * 0.5f;
  return (up ? x > bound : x < bound) ? neighbour : pivot;
}

// ---- statistics -----------------------------------------------------------------------------------------------------
// Where a maximum begins: CUDA's. It stays in a block of nothing but NaN; in a last block, zeros fill up what it lacks.
constexpr float kNoMaximum = -3.40282347e38f;

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
//   8  for GPUs: how many neighbours a lane takes at once. A chunk of the tile, 32 elements a lane, lies in registers;
//      blocksize is 2^shift, from 32 to a chunk. What a sub-group holds of a block is reduced by shuffles, what a
//      work-group holds in local memory.
//   2  for CPU devices (SUBG_SIZE 16): a sub-group walks through a stretch of its own, block by block; blocksize is
//      2^shift, from 32 to the stretch.
//   1  any blocksize, 8-bit types alone. `shift` is how many lanes share a block: 1, SUBG_SIZE, or GROUP_SIZE if
//      TILE_SIZE is greater than 1; a work-group takes GROUP_SIZE / shift blocks, whatever their size.
// `vectorised` says that A and out are aligned to what a lane moves. `code` is read for General8bit alone.
template <class T, int TILE_SIZE, int NUM_PER_TH, int DATA_TYPE, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, DATA_TYPE == General8bit && NUM_PER_TH > 1 ? 256 : 128)
kQuantizeBlockwise(const float* code, const T* A, float* absmax, u8* out, i64 blocksize, i32 shift, i32 vectorised, i64 n) {
  constexpr bool kPacked = DATA_TYPE != General8bit;
  constexpr int kSubGroups = GROUP_SIZE / SUBG_SIZE;
  static_assert(NUM_PER_TH == 8 || NUM_PER_TH == 2 || (NUM_PER_TH == 1 && !kPacked));
  const u32 lane = lane_id();
  [[maybe_unused]] float in_lane = 0.0f;
  if constexpr (DATA_TYPE == NF4) in_lane = (NUM_PER_TH == 8 ? kNF4Thresholds : kNF4Tree).at[lane & 15];
  if constexpr (DATA_TYPE == FP4) in_lane = (NUM_PER_TH == 8 ? kFP4Thresholds : kFP4Tree).at[lane & 15];

  if constexpr (NUM_PER_TH == 8) {
    constexpr int kSteps = 4, kChunk = GROUP_SIZE * 8 * kSteps, kSpan = SUBG_SIZE * 8, kSpans = kChunk / kSpan;
    static_assert(TILE_SIZE % kChunk == 0);
    const u32 first = (sub_group_id() * SUBG_SIZE + lane) * 8;
    const i32 lanes = static_cast<i32>(blocksize < kSpan ? blocksize / 8 : SUBG_SIZE);
    static local_memory<float[2][kSpans]> maxima;  // one being read, one for the next chunk
    Cells<true> cells{};
    if constexpr (!kPacked) {
      static local_memory<CellMemory<true>> memory;
      cells = cells_of<GROUP_SIZE, SUBG_SIZE>(memory.data, code,
                                              [&](u32 i) __attribute__((always_inline)) { return bound_of_8bit(code, i); });
    }

#pragma unroll 1
    for (int c = 0; c < TILE_SIZE / kChunk; c++) {
      const i64 chunk = group_id() * TILE_SIZE + c * kChunk;
      if (chunk >= n) break;
      const bool whole = vectorised && chunk + kChunk <= n;
      const T* const from = A + chunk;
      pack<T, 8> raw[kSteps];
      if (whole) {
#pragma unroll
        for (int s = 0; s < kSteps; s++) raw[s] = load8(from + first + s * (GROUP_SIZE * 8));
      } else {
        const u32 inside = static_cast<u32>(n - chunk < kChunk ? n - chunk : kChunk);
#pragma unroll
        for (int s = 0; s < kSteps; s++)
#pragma unroll
          for (u32 v = 0; v < 8; v++) {
            const u32 i = first + s * (GROUP_SIZE * 8) + v;
            raw[s].v[v] = i < inside ? from[i] : T{};
          }
      }

      float maximum[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
        maximum[s] = kNoMaximum;
#pragma unroll
        for (int v = 0; v < 8; v++) maximum[s] = larger(__builtin_fabsf(to_float(raw[s].v[v])), maximum[s]);
        maximum[s] = lanes_max<SUBG_SIZE>(maximum[s], lanes);
      }
      if (blocksize > kSpan) {
        float* const mine = maxima.data[c % 2];
#pragma unroll
        for (int s = 0; s < kSteps; s++)
          if (lane == 0) mine[s * kSubGroups + sub_group_id()] = maximum[s];
        barrier();
        const u32 spans = static_cast<u32>(blocksize / kSpan);
#pragma unroll
        for (int s = 0; s < kSteps; s++) {
          const u32 begin = (s * kSubGroups + sub_group_id()) & ~(spans - 1);
          float m = mine[begin + (lane & (spans - 1))];
          for (u32 j = lane + SUBG_SIZE; j < spans; j += SUBG_SIZE) m = larger(mine[begin + j], m);
          maximum[s] = lanes_max<SUBG_SIZE>(m, SUBG_SIZE);
        }
      }

      // At least four lanes share a block: each makes the reciprocal for one of the four steps.
      static_assert(kSteps == 4);
      const float upper = lane & 1 ? maximum[3] : maximum[2], lower = lane & 1 ? maximum[1] : maximum[0];
      const float my_scale = block_scale(flushed(lane & 2 ? upper : lower));
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
        const u32 at = first + s * (GROUP_SIZE * 8);
        const float scale = shuffle(my_scale, (lane & ~3u) | s);
        if (((static_cast<u32>(chunk) + at) & static_cast<u32>(blocksize - 1)) == 0 && chunk + at < n)
          absmax[(chunk + at) >> shift] = flushed(maximum[s]);
        float x[8];
        const float least = least_of(scale);
#pragma unroll
        for (int v = 0; v < 8; v++) {
          x[v] = to_float(raw[s].v[v]) * scale;
          if (!kPacked || !__is_same(T, half)) x[v] = flushed(x[v], least);  // 4-bit codes do not see the sign of a half's 0
        }
        if constexpr (kPacked) {
          const u32 word = pack_codes<DATA_TYPE>(in_lane, x);
          u8* const to = out + (chunk >> 1);
          if (whole) {
            *reinterpret_cast<u32*>(to + (at >> 1)) = word;
          } else {
#pragma unroll
            for (int v = 0; v < 8; v += 2)
              if (chunk + at + v < n) to[(at + v) >> 1] = static_cast<u8>(word >> 4 * v);
          }
        } else {
          u8* const to = out + chunk;
          if (cells.steps >= Cells<true>::kUnordered) {  // rare: from memory again, and not in as many copies as there are elements
#pragma unroll 1
            for (u32 i = at; i < at + 8 && chunk + i < n; i++)
              to[i] = static_cast<u8>(code_of_8bit(code, flushed(to_float(from[i]) * scale, least)));
            continue;
          }
          u32 found[8];
          cells.find(x, found);
          pack<u8, 8> codes;
#pragma unroll
          for (int v = 0; v < 8; v++) codes.v[v] = static_cast<u8>(found[v]);
          if (whole) {
            *reinterpret_cast<pack<u8, 8>*>(to + at) = codes;
          } else {
#pragma unroll
            for (int v = 0; v < 8; v++)
              if (chunk + at + v < n) to[at + v] = codes.v[v];
          }
        }
      }
    }

  } else if constexpr (NUM_PER_TH == 2) {
    static_assert(SUBG_SIZE == 16);
    constexpr int kStretch = TILE_SIZE / kSubGroups;
    const i64 begin = group_id() * TILE_SIZE + sub_group_id() * kStretch;
    Rows values{};
    if constexpr (!kPacked) {
      static local_memory<float[256]> memory;
      for (u32 k = 0; k < 256; k += GROUP_SIZE) memory.data[k + local_id()] = code[sought_at(k + local_id())];
      barrier();
      values.at = memory.data;
    }
    // The codes of a whole block.
    const u32 size = static_cast<u32>(blocksize);
    const auto code_block = [&](const T* from, u8* to, float scale) __attribute__((always_inline)) {
      const float least = least_of(scale);
#pragma unroll 2
      for (u32 t = 0; t < size; t += 32) {
        if constexpr (kPacked) {
          float x0, x1;
          load2(from + t, lane, x0, x1);
          (to + (t >> 1))[lane] = static_cast<u8>(code_of_4bit<DATA_TYPE>(in_lane, flushed(x0 * scale, least)) << 4 |
                                                  code_of_4bit<DATA_TYPE>(in_lane, flushed(x1 * scale, least)));
        } else {
          (to + t)[lane] = static_cast<u8>(code_in_rows(values, flushed(to_float((from + t)[lane]) * scale, least)));
          (to + t + 16)[lane] = static_cast<u8>(code_in_rows(values, flushed(to_float((from + t + 16)[lane]) * scale, least)));
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
          float m0 = kNoMaximum, m1 = kNoMaximum;
#pragma unroll 4
          for (u32 t = 0; t < size; t += 32) {
            m0 = larger(__builtin_fabsf(to_float((from + t)[lane])), m0);
            m1 = larger(__builtin_fabsf(to_float((from + t + 16)[lane])), m1);
          }
          m0 = lanes_max<16>(larger(m0, m1), 16);
          mine = lane == b ? m0 : mine;
        }
        mine = flushed(mine);
        const float scales = block_scale(mine);
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
        float m = inside < size ? 0.0f : kNoMaximum;
        for (u32 t = 0; t < inside; t += 16)
          if (t + lane < inside) m = larger(__builtin_fabsf(to_float(from[t + lane])), m);
        m = flushed(lanes_max<16>(m, 16));
        const float scale = block_scale(m), least = least_of(scale);
        if constexpr (kPacked) {
          for (u32 t = 0; t < inside; t += 32) {
            const u32 i = t + 2 * lane;
            const float x0 = i < inside ? to_float(from[i]) : 0.0f, x1 = i + 1 < inside ? to_float(from[i + 1]) : 0.0f;
            const u32 high = code_of_4bit<DATA_TYPE>(in_lane, flushed(x0 * scale, least));
            const u32 low = code_of_4bit<DATA_TYPE>(in_lane, flushed(x1 * scale, least));
            if (i < inside) to[i >> 1] = static_cast<u8>(high << 4 | low);
          }
        } else {
          for (u32 t = 0; t < inside; t += 16) {
            const u32 i = t + lane;
            const u32 c = code_in_rows(values, flushed((i < inside ? to_float(from[i]) : 0.0f) * scale, least));
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
    float m = size < blocksize ? 0.0f : kNoMaximum;
    for (i64 i = member; i < size; i += team) m = larger(__builtin_fabsf(to_float(from[i])), m);
    if (team != 1) m = lanes_max<SUBG_SIZE>(m, SUBG_SIZE);
    if constexpr (kLocal) {
      if (team == GROUP_SIZE) {
        if (lane == 0) maxima.data[sub_group_id()] = m;
        barrier();
        for (int g = 0; g < kSubGroups; g++) m = larger(maxima.data[g], m);
      }
    }
    m = flushed(m);
    const float scale = block_scale(m), least = least_of(scale);
    for (i64 i = member; i < size; i += team)
      (out + begin)[i] = static_cast<u8>(code_of_8bit(code, flushed(to_float(from[i]) * scale, least)));
    if (member == 0 && block < blocks) absmax[block] = m;
  }
}

}  // namespace bnb
