// 256 values in the lanes of a sub-group of 16, for CPU devices: a look-up is shuffles, where a vector unit that gathers from
// memory takes several times as long.
//
// Value i = 16 h + c lies in row c, lane h. What is wanted of a row is always in lane h: so h is found first, among the 16
// values of one row, and then 4 bits are left, which select among rows.
#pragma once
#include "device.h"

namespace bnb {

// The place in increasing order of node k (1 to 2^LEVELS - 1) of a binary search tree whose node k has children 2k, 2k + 1.
template <int LEVELS>
constexpr BNB_INLINE u32 rank_of(u32 k) {
  const u32 level = 31 - __builtin_clz(k);
  return ((2 * (k - (1u << level)) + 1) << (LEVELS - 1 - level)) - 1;
}

// Rows of 16 lanes, as they lie in memory: any that a load of a sub-group reads fast.
struct Rows {
  const float* at;
  BNB_INLINE float operator()(u32 row, u32 lane) const { return shuffle((at + 16 * row)[lane_id()], lane); }
};

// One of two values that are there already: a choice between places in memory, or one that a shuffle depends on, would be a
// gather.
BNB_INLINE float either(bool up, float high, float low) { return up ? high : low; }

// Where value i lies in its rows.
BNB_INLINE u32 place_in_rows(u32 i) { return (i & 15) * 16 + (i >> 4); }

// Value i of those in rows. In uniform control flow, as all here.
BNB_INLINE float value_in_rows(const Rows& rows, u32 i) {
  const u32 high = i >> 4;
  float v[16];
#pragma unroll
  for (u32 c = 0; c < 16; c++) v[c] = rows(c, high);
#pragma unroll
  for (u32 bit = 0; bit < 4; bit++)
#pragma unroll
    for (u32 c = 0; c < 8u >> bit; c++) v[c] = either(i >> bit & 1, v[2 * c + 1], v[2 * c]);
  return v[0];
}

// For a search, lane k of row 15 has node k of the tree of values 15, 31, ... 239, and lane 0 the last value: what comes there.
BNB_INLINE u32 sought_at(u32 place) {
  const u32 row = place >> 4, lane = place & 15;
  return 16 * (row != 15 ? lane : lane ? rank_of<4>(lane) : 15) + row;
}

// How many of 255 bounds in increasing order are at x or below; bounds 0, 2, 4, ... only count where they are below x. It
// is what a binary search finds, also where bounds do not increase; for NaN it is 0.
BNB_INLINE u32 bounds_up_to(const Rows& bounds, float x) {
  u32 high = 1;
#pragma unroll
  for (int level = 0; level < 4; level++) high = 2 * high + (x >= bounds(15, high));
  high &= 15;
  float at[15];
#pragma unroll
  for (u32 c = 0; c < 15; c++) at[c] = bounds(c, high);
  const bool b3 = x >= at[7];
  const bool b2 = x >= either(b3, at[11], at[3]);
  const bool b1 = x >= either(b3, either(b2, at[13], at[9]), either(b2, at[5], at[1]));
  const bool b0 = x > either(b3, either(b2, either(b1, at[14], at[12]), either(b1, at[10], at[8])),
                             either(b2, either(b1, at[6], at[4]), either(b1, at[2], at[0])));
  return 16 * high | (b3 ? 8 : 0) | (b2 ? 4 : 0) | (b1 ? 2 : 0) | (b0 ? 1 : 0);
}

// The code of x among 256 values: CUDA's search, which is of odd values first, then of the midpoints to the neighbours of an
// even one. These neighbours are the last value on the way that was too small, and the last that was not.
BNB_INLINE u32 code_in_rows(const Rows& values, float x) {
  u32 high = 1;
  float below = 0.0f, above = values(15, 0);
  const auto is_above = [&](float value) __attribute__((always_inline)) {
    const bool up = x > value;
    below = either(up, value, below), above = either(up, above, value);
    return up;
  };
#pragma unroll
  for (int level = 0; level < 4; level++) high = 2 * high + is_above(values(15, high));
  high &= 15;
  float at[15];
#pragma unroll
  for (u32 c = 0; c < 15; c++) at[c] = values(c, high);
  const bool b3 = is_above(at[7]);
  const bool b2 = is_above(either(b3, at[11], at[3]));
  const bool b1 = is_above(either(b3, either(b2, at[13], at[9]), either(b2, at[5], at[1])));
  const float middle = either(b3, either(b2, either(b1, at[14], at[12]), either(b1, at[10], at[8])),
                              either(b2, either(b1, at[6], at[4]), either(b1, at[2], at[0])));
  const u32 code = 16 * high | (b3 ? 8 : 0) | (b2 ? 4 : 0) | (b1 ? 2 : 0);
  const bool up = x > middle;
  const float bound = (either(up, above, below) + middle) * 0.5f;
  const u32 neighbour = up ? code + 1 : code ? code - 1 : 0;
  return (up ? x > bound : x < bound) ? neighbour : code;
}

}  // namespace bnb
