// Maps of 256 increasing values, of 8-bit blocks and of 8-bit optimizer states: which code a value gets.
//
// Code i ends and i + 1 begins at threshold i. A value is found by a binary search of eight comparisons: `>=` in the
// first seven, so that a value at a threshold goes to the even code above it, `>` in the last, so that it goes to the
// even code below. NaN becomes code 0.
#pragma once

#include <cstdint>

namespace bnb::cpu {

struct Thresholds {
  alignas(64) float sorted[256];  // the last one is not used
  // The same by comparison, for look-ups in registers: comparison d finds its threshold at the number whose bit j is the
  // outcome of comparison j. Of 16 each for the first five, repeated where there are fewer.
  alignas(64) float upper[5][16];
  alignas(64) float sixth[32], seventh[64], eighth[128];

  int code_of(float x) const {
    const float* at = sorted;
    for (int step = 128; step > 1; step /= 2) at += x >= at[step - 1] ? step : 0;
    return static_cast<int>(at - sorted) + (x > at[0]);
  }

  // From the 255 sorted ones.
  void arrange() {
    for (int d = 0; d < 8; d++)
      for (int path = 0; path < 1 << d; path++) {
        int prefix = 0;
        for (int j = 0; j < d; j++) prefix = 2 * prefix + (path >> j & 1);
        const float threshold = sorted[((2 * prefix + 1) << (7 - d)) - 1];
        if (d < 5) {
          for (int lane = path; lane < 16; lane += 1 << d) upper[d][lane] = threshold;
        } else {
          (d == 5 ? sixth : d == 6 ? seventh : eighth)[path] = threshold;
        }
      }
  }
};

}  // namespace bnb::cpu
