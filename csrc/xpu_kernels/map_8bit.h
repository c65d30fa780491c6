// The code of a value among 256 increasing ones, for GPUs: one look-up says where to start, from a float's exponent and upper
// bits of mantissa; what is left, as a rule one bound or two, is compared.
#pragma once
#include "device.h"

namespace bnb {

// The next float above x, which is finite.
BNB_INLINE float next_up(float x) {
  const u32 bits = bits_as<u32>(x);
  return bits_as<float>(bits << 1 == 0 ? 1 : bits >> 31 ? bits - 1 : bits + 1);
}

// The smallest x that gets a code above i (0 to 254) in CUDA's search, where the values increase. Ties go to even codes.
BNB_INLINE float bound_of_8bit(const float* code, u32 i) {
  const float middle = (code[i] + code[i + 1]) * 0.5f;
  return i % 2 ? (middle > code[i] ? middle : next_up(code[i])) : next_up(middle);
}

// What tells two codes apart in an optimizer: the midpoint. Ties go to even codes.
BNB_INLINE float midpoint_of_8bit(const float* code, u32 i) {
  const float middle = (code[i] + code[i + 1]) * 0.5f;
  return i % 2 ? middle : next_up(middle);
}

// Cells of [-1, 1], in order: 64 for each power of two from 2^-22 on, and what is nearer to 0 in one, for either sign. Of
// [0, 1], if not SIGNED: 128 for each power of two; the first takes negative numbers too.
template <bool SIGNED>
struct CellsOf {
  static constexpr i32 kBits = SIGNED ? 6 : 7, kLowest = (127 - 22) << kBits, kSide = (22 << kBits) + 1;
  static constexpr u32 kEnd = SIGNED ? 2 * kSide : kSide;

  static BNB_INLINE i32 of(float x) {
    const float size = (SIGNED ? __builtin_fabsf(x) : larger(x, 0.0f)) + 0x1p-22f;
    const i32 k = static_cast<i32>(bits_as<u32>(size < 1.0f ? size : 1.0f) >> (23 - kBits)) - kLowest;
    return SIGNED ? (k ^ (bits_as<i32>(x) >> 31)) + kSide : k;
  }
};

template <bool SIGNED>
struct CellMemory {
  float bound[256];                           // in order; the last is beyond everything
  u32 start[CellsOf<SIGNED>::kEnd / 4 + 1];  // a byte for each cell: how many bounds lie below it; one more for the end
  u32 most[32];                               // by sub-group: bounds in a cell, of those it looked at
};

// What a lane needs to know of a map.
template <bool SIGNED>
struct Cells {
  const CellMemory<SIGNED>* memory;
  u32 steps;  // bounds in a cell, at most; kUnordered or more if the bounds do not increase
  static constexpr u32 kUnordered = 1u << 16;

  // Codes of N values. -0 is none of them; NaN gets code 0.
  template <int N>
  BNB_INLINE void find(const float (&values)[N], u32 (&codes)[N]) const {
    const u8* const start = reinterpret_cast<const u8*>(memory->start);
    float x[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
      x[j] = SIGNED ? larger(values[j], -__builtin_inff()) : values[j];
      codes[j] = start[CellsOf<SIGNED>::of(x[j])];
    }
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
#pragma unroll
      for (int j = 0; j < N; j++) codes[j] += x[j] >= memory->bound[codes[j]];
    }
  }
};

// Fills a map's memory; `bound_of(i)` is the smallest value with a code above i (0 to 254). In uniform control flow, by the
// whole work-group.
template <int GROUP_SIZE, int SUBG_SIZE, bool SIGNED, class Bound>
BNB_INLINE Cells<SIGNED> cells_of(CellMemory<SIGNED>& memory, const float* code, const Bound& bound_of) {
  using In = CellsOf<SIGNED>;
  u8* const start = reinterpret_cast<u8*>(memory.start);
  for (u32 i = local_id(); i < 256; i += GROUP_SIZE) {
    const float bound = i < 255 ? bound_of(i) : __builtin_inff();
    memory.bound[i] = bound;
    // Cells behind the bound before this one, up to this one's. Where bounds do not increase, what is here is not used.
    u32 cell = i ? static_cast<u32>(In::of(bound_of(i - 1))) + 1 : 0;
    const u32 end = i < 255 ? static_cast<u32>(In::of(bound)) + 1 : In::kEnd + 1;
    for (; cell < end && cell % 4; cell++) start[cell] = static_cast<u8>(i);
    for (; cell + 4 <= end; cell += 4) memory.start[cell / 4] = i * 0x01010101;
    for (; cell < end; cell++) start[cell] = static_cast<u8>(i);
  }
  barrier();
  u32 most = 1;
  for (u32 i = local_id(); i < 255; i += GROUP_SIZE) {
    const i32 cell = In::of(memory.bound[i]);
    const u32 here = static_cast<u32>(start[cell + 1]) - start[cell];
    most = here > most ? here : most;
    if (!(code[i] <= code[i + 1] && code[i] >= -0x1p126f && code[i + 1] <= 0x1p126f && memory.bound[i] <= memory.bound[i + 1]))
      most = Cells<SIGNED>::kUnordered;
  }
#pragma unroll
  for (u32 mask = 1; mask < SUBG_SIZE; mask *= 2) {
    const u32 other = shuffle_xor(most, mask);
    most = other > most ? other : most;
  }
  if (lane_id() == 0) memory.most[sub_group_id()] = most;
  barrier();
#pragma unroll
  for (int g = 0; g < GROUP_SIZE / SUBG_SIZE; g++) most = memory.most[g] > most ? memory.most[g] : most;
  return {&memory, most};
}

}  // namespace bnb
