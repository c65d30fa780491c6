// What the int8 kernels share: rounding to int8, the reciprocal that decides CUDA's codes, and how a matrix is tiled.
#pragma once
#include "../int8_scales.h"
#include "reciprocal.h"

namespace bnb {

// Whether it holds in any lane. The CPU's compiler knows this to be uniform, which it does not of shuffles: a branch on it
// leaves the code behind it vectorised.
BNB_INLINE bool sub_group_any(bool value) {
#ifdef __NVPTX__
  return __nvvm_vote_any_sync(0xffffffff, value);
#else
  return __spirv_GroupAny(kScopeSubGroup, value);
#endif
}

// The nearest whole number as int8, halves to even; |x| < 2^22. NaN and infinity give 0, but a NaN that began as fp32:
// adding 1.5 * 2^23 leaves the number in the low bits, and theirs are zero.
BNB_INLINE u8 nearest_int8(float x) {
#ifdef __NVPTX__  // where the bits of a NaN are others, and a narrow store of a float's bits was seen to convert it
  i32 result;
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return static_cast<u8>(result);
#else
  return static_cast<u8>(bits_as<u32>(x + 12582912.0f));
#endif
}

// a / b rounded to nearest, for 0 <= |a / b| < 2^20, given 1 / b. Far from 1, the caller scales both.
BNB_INLINE float divide(float a, float b, float reciprocal) {
  const float quotient = a * reciprocal;
  return __builtin_fmaf(__builtin_fmaf(-quotient, b, a), reciprocal, quotient);
}

// What a bias (a value a column) holds; NoBias where it is null.
enum BiasType { NoBias = -1, Float16 = 0, BFloat16 = 1, Float32 = 2 };

// bias[first + i]: `first` is the same in all lanes.
BNB_INLINE float bias_at(const void* bias, i32 type, i64 first, u32 i) {
  if (type == Float16) return to_float((static_cast<const half*>(bias) + first)[i]);
  if (type == BFloat16) return to_float((static_cast<const bfloat16*>(bias) + first)[i]);
  if (type == Float32) return (static_cast<const float*>(bias) + first)[i];
  return 0.0f;
}

// A matrix cut into tiles, each a sub-group's: ROWS rows high, STEPS * SUBG_SIZE * NUM_PER_TH columns wide. A lane
// takes NUM_PER_TH neighbouring columns at each step. With NUM_PER_TH > 1, cols is a multiple of it.
template <int SUBG_SIZE, int NUM_PER_TH, int STEPS>
struct Tiles {
  static constexpr int kSpan = SUBG_SIZE * NUM_PER_TH;
  static constexpr int kWidth = kSpan * STEPS;
  i64 first_row, rows;  // of this tile
  i64 first_col, left;  // columns from there to the end of the row

  BNB_INLINE Tiles(i64 tile, i64 all_rows, i64 cols, i64 height) {
    const i64 across = (cols + kWidth - 1) / kWidth;
    const i64 down = tile / across;
    first_row = down * height;
    rows = all_rows - first_row < height ? all_rows - first_row : height;
    first_col = (tile - down * across) * kWidth;
    left = cols - first_col;
  }
  // Nothing is left of the matrix for this sub-group.
  BNB_INLINE bool empty() const { return rows <= 0; }
  BNB_INLINE bool whole() const { return left >= kWidth; }
  BNB_INLINE bool has(int step, u32 lane) const { return step * kSpan + static_cast<i64>(lane * NUM_PER_TH) < left; }
};

}  // namespace bnb
