// Blockwise dequantisation: out[i] = code[A[i]] * absmax[i / blocksize], in fp32, rounded once to T.
//
// 4-bit codes (FP4, NF4) are looked up among the lanes of the sub-group: lane l holds the value of code l % 16, so a
// look-up is one shuffle and no memory traffic. The 256 entries of an 8-bit code lie in work-group local memory.
// A lane takes NUM_PER_TH neighbours at once, and a sub-group's loads and stores run without a gap.
#include "device.h"

namespace bnb {

// The bits of a value as T, in the low half of a word.
template <class T>
BNB_INLINE u32 bits16(float x) {
  return bits_as<u16>(from_float<T>(x));
}

// Whether a scale makes no NaN of a number: neither NaN, nor infinite (times zero), nor zero (times infinity).
BNB_INLINE bool ordinary(float scale) {
  const u32 magnitude = bits_as<u32>(scale) & 0x7fffffff;
  return magnitude - 1 < 0x7f7fffff;
}

// A work-group of GROUP_SIZE dequantises TILE_SIZE elements. NUM_PER_TH is how many a lane takes at once:
//   4, 8  neighbours; n is less than 2^34, blocksize is 2^shift >= NUM_PER_TH, pointers are aligned to what a lane moves;
//   2     for CPU devices: a sub-group walks through a stretch of its own, 32 elements (one block) a step; blocksize is
//         2^shift >= 32, A of 8-bit codes is aligned to two bytes, out to two elements;
//   1     any blocksize (shift is -1 if it is no power of two), any pointer.
// `code` is read for General8bit alone.
template <class T, int TILE_SIZE, int NUM_PER_TH, int DATA_TYPE, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kDequantizeBlockwise(const float* code, const u8* A, const float* absmax, T* out, i64 blocksize, i32 shift, i64 n) {
  constexpr bool kPacked = DATA_TYPE != General8bit;
  constexpr bool kLocalTable = !kPacked && NUM_PER_TH >= 4;  // a CPU's table is in its cache already
  constexpr bool kForCpu = NUM_PER_TH == 2;  // a GPU's lanes move 16 bytes
  constexpr int kSpan = SUBG_SIZE * NUM_PER_TH;
  constexpr int kStretch = TILE_SIZE / (GROUP_SIZE / SUBG_SIZE);
  static_assert(NUM_PER_TH == 1 || NUM_PER_TH == 2 || NUM_PER_TH == 4 || NUM_PER_TH == 8);
  static_assert(kStretch % kSpan == 0);

  const u32 lane = lane_id();
  static local_memory<float[kLocalTable ? 256 : 1]> table;
  if constexpr (kLocalTable) {
    // NaN in its standard form, which rounds to bfloat16 like a number
    for (int i = local_id(); i < 256; i += GROUP_SIZE) table.data[i] = code[i] == code[i] ? code[i] : bits_as<float>(0x7fc00000);
    barrier();
  }
  const float in_lane = DATA_TYPE == NF4 ? kNF4[lane & 15] : DATA_TYPE == FP4 ? kFP4[lane & 15] : 0.0f;
  const auto value = [&](u32 c) {
    if constexpr (kPacked)
      return shuffle(in_lane, c);
    else if constexpr (kLocalTable)
      return table.data[c];
    else
      return code[c];
  };

  // Where step t of this sub-group begins. 64-bit arithmetic is on values that the sub-group shares; what a lane adds
  // fits in 32 bits.
  const i64 tile = group_id() * TILE_SIZE;
  const auto base_of = [&](int t) {
    if constexpr (NUM_PER_TH == 2) return tile + sub_group_id() * kStretch + t;
    // A GPU's compiler has to be told that the number is the same in all lanes; a CPU's must not be, by a shuffle.
    const u32 sub_group = kForCpu ? static_cast<u32>(sub_group_id()) : uniform(local_id() / SUBG_SIZE);
    return tile + t * (GROUP_SIZE / SUBG_SIZE) + sub_group * kSpan;
  };

  // A step that lies inside the tensor.
  const auto whole = [&](i64 base) __attribute__((always_inline)) {
    if constexpr (NUM_PER_TH >= 4) {
      // Counted in what a lane takes, it fits in 32 bits: n is less than 2^34 here.
      constexpr int kUnit = NUM_PER_TH == 8 ? 3 : 2;
      const float scale = absmax[(static_cast<u32>(base >> kUnit) + lane) >> (shift - kUnit)];
      float x[NUM_PER_TH];
      if constexpr (kPacked) {
        const u32 word = reinterpret_cast<const word_of<NUM_PER_TH / 2>*>(A + (base >> 1))[lane];
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) x[j] = value(code_of(word, j)) * scale;
      } else {
        const auto codes = reinterpret_cast<const pack<u8, NUM_PER_TH>*>(A + base)[lane];
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) x[j] = value(codes.v[j]) * scale;
      }
      auto& result = reinterpret_cast<pack<T, NUM_PER_TH>*>(out + base)[lane];
      if (sizeof(T) == 4 || __is_same(T, half) || ordinary(scale)) {
        result = pack_plain<T, NUM_PER_TH>(x);
      } else {
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) result.v[j] = from_float<T>(x[j]);
      }
    } else if constexpr (NUM_PER_TH == 2) {
      const float scale = absmax[base >> shift];
      if constexpr (kPacked) {  // scale and round the table, not each element
        const u32 c = (A + (base >> 1))[lane];
        if constexpr (sizeof(T) == 2) {
          const u32 scaled = bits16<T>(in_lane * scale);
          reinterpret_cast<u32*>(out + base)[lane] = shuffle(scaled, c >> 4) | shuffle(scaled, c & 15) << 16;
        } else {
          const u32 scaled = bits_as<u32>(in_lane * scale);
          const u64 high = shuffle(scaled, c & 15);
          __builtin_nontemporal_store(shuffle(scaled, c >> 4) | high << 32, reinterpret_cast<u64*>(out + base) + lane);
        }
      } else if constexpr (sizeof(T) == 2) {
        const u32 pair = reinterpret_cast<const u16*>(A + base)[lane];
        const u32 low = bits16<T>(value(pair & 255) * scale), high = bits16<T>(value(pair >> 8) * scale);
        reinterpret_cast<u32*>(out + base)[lane] = low | high << 16;
      } else {
        (out + base)[lane] = value((A + base)[lane]) * scale;
        (out + base + SUBG_SIZE)[lane] = value((A + base + SUBG_SIZE)[lane]) * scale;
      }
    }
  };
  // Any step, guarded, an element a lane; in uniform control flow, since lanes look up in one another.
  const auto guarded = [&](i64 base) __attribute__((always_inline)) {
#pragma unroll 1  // rarely run: short code
    for (int s = 0; s < kSpan; s += SUBG_SIZE) {
      const i64 i = base + s + lane;
      const bool inside = i < n;
      const u32 c = !inside ? 0 : kPacked ? code_at(A, i) : A[i];
      const float v = value(c);
      if (inside) out[i] = from_float<T>(v * absmax[NUM_PER_TH > 1 || shift >= 0 ? i >> shift : i / blocksize]);
    }
  };

  if (NUM_PER_TH > 1 && tile + TILE_SIZE <= n) {
#pragma unroll 4
    for (int t = 0; t < kStretch; t += kSpan) whole(base_of(t));
  } else {
#pragma unroll 1
    for (int t = 0; t < kStretch; t += kSpan) {
      const i64 base = base_of(t);
      if (base < n) guarded(base);
    }
  }
}

}  // namespace bnb
