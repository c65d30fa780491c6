// Blockwise dequantisation: out[i] = code[A[i]] * absmax[i / blocksize], in fp32, rounded once to T.
//
// 4-bit codes (FP4, NF4) are looked up among the lanes of the sub-group: lane l holds the value of code l % 16, so a
// look-up is one shuffle and no memory traffic. The 256 entries of an 8-bit code lie in work-group local memory.
// A lane takes NUM_PER_TH neighbours at once, and a sub-group's loads and stores run without a gap.
#include "device.h"

namespace bnb {

// A work-group of GROUP_SIZE dequantises TILE_SIZE elements. NUM_PER_TH = 1 takes any blocksize and any pointer; more
// wants a blocksize of 2^shift >= NUM_PER_TH, and pointers aligned to what a lane moves. `code` is read for General8bit
// alone; shift is -1 where blocksize is no power of two.
template <class T, int TILE_SIZE, int NUM_PER_TH, int DATA_TYPE, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kDequantizeBlockwise(const float* code, const u8* A, const float* absmax, T* out, i64 blocksize, i32 shift, i64 n) {
  constexpr bool kPacked = DATA_TYPE != General8bit;
  constexpr int kSpan = SUBG_SIZE * NUM_PER_TH;
  constexpr int kStride = GROUP_SIZE * NUM_PER_TH;
  static_assert(TILE_SIZE % kStride == 0);
  static_assert(NUM_PER_TH == 1 || NUM_PER_TH == 4 || NUM_PER_TH == 8);

  static local_memory<float[kPacked ? 1 : 256]> table;
  if constexpr (!kPacked) {
    for (int i = local_id(); i < 256; i += GROUP_SIZE) table.data[i] = code[i];
    barrier();
  }
  const u32 lane = lane_id();
  const float in_lane = DATA_TYPE == NF4 ? kNF4[lane & 15] : DATA_TYPE == FP4 ? kFP4[lane & 15] : 0.0f;
  const auto value = [&](u32 c) {
    if constexpr (kPacked)
      return shuffle(in_lane, c);
    else
      return table.data[c];
  };

#pragma unroll NUM_PER_TH == 1 ? 1 : 4
  for (int t = 0; t < TILE_SIZE; t += kStride) {
    // All 64-bit arithmetic is on values that the sub-group shares; what a lane adds fits in 32 bits.
    const i64 base = group_id() * TILE_SIZE + t + sub_group_id() * kSpan;
    if (base >= n) return;
    if constexpr (NUM_PER_TH > 1) {
      if (base + kSpan <= n) {
        const u32 within = static_cast<u32>(base & (blocksize - 1)) + lane * NUM_PER_TH;
        const float scale = (absmax + (base >> shift))[within >> shift];
        pack<T, NUM_PER_TH> result;
        if constexpr (kPacked) {
          const u32 word = reinterpret_cast<const word_of<NUM_PER_TH / 2>*>(A + (base >> 1))[lane];
#pragma unroll
          for (int j = 0; j < NUM_PER_TH; j++) result.v[j] = from_float<T>(value(code_of(word, j)) * scale);
        } else {
          const auto codes = reinterpret_cast<const pack<u8, NUM_PER_TH>*>(A + base)[lane];
#pragma unroll
          for (int j = 0; j < NUM_PER_TH; j++) result.v[j] = from_float<T>(value(codes.v[j]) * scale);
        }
        reinterpret_cast<pack<T, NUM_PER_TH>*>(out + base)[lane] = result;
        continue;
      }
    }
    // The end of the tensor, or anything at all where NUM_PER_TH = 1: guarded, an element a lane, in uniform control flow.
    for (int s = 0; s < kSpan; s += SUBG_SIZE) {
      const i64 i = base + s + lane;
      const bool inside = i < n;
      const u32 c = !inside ? 0 : kPacked ? code_at(A, i) : A[i];
      const float v = value(c);
      if (inside) out[i] = from_float<T>(v * absmax[shift >= 0 ? i >> shift : i / blocksize]);
    }
  }
}

}  // namespace bnb
