// Maps of 256 increasing values, of 8-bit blocks and of 8-bit optimizer states: which code a value gets.
//
// Code i ends and i + 1 begins at threshold i. A value is found by a binary search of eight comparisons: `>=` in the
// first seven, so that a value at a threshold goes to the even code above it, `>` in the last, so that it goes to the
// even code below. NaN becomes code 0. For many values there is a faster way to the same code: a bucket of the numbers
// that begin with the same bits says all but one comparison, as long as no bucket holds two thresholds.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace bnb::cpu {

struct Thresholds {
  alignas(64) float sorted[256];  // the last one is not used
  // The same by comparison, for look-ups in registers: comparison d finds its threshold at the number whose bit j is the
  // outcome of comparison j. Of 16 each for the first five, repeated where there are fewer.
  alignas(64) float upper[5][16];
  alignas(64) float sixth[32], seventh[64], eighth[128];

  // A bucket: x has `code`, or the next one if x >= bound. By magnitude: its bits but for the last 16, from kLeast on;
  // less is in bucket 0, more in the last one. Those of negatives come after those of positives.
  static constexpr int kBuckets = 4096, kLeast = (127 - 30) << 7, kDropped = 16;
  struct Bucket {
    float bound;
    int32_t code;
  };
  alignas(64) Bucket buckets[2 * kBuckets];
  bool has_buckets;

  // From the 255 sorted ones. Buckets are worth their making for so many values.
  void arrange(int64_t values) {
    constexpr int64_t kMany = 1 << 16;
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
    has_buckets = values >= kMany && fill_buckets();
  }

  int code_of(float x) const {
    const float* at = sorted;
    for (int step = 128; step > 1; step /= 2) at += x >= at[step - 1] ? step : 0;
    return static_cast<int>(at - sorted) + (x > at[0]);
  }

  static int bucket_of(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const int key = static_cast<int>((bits & 0x7fffffff) >> kDropped) - kLeast;
    return (key < 0 ? 0 : key < kBuckets ? key : kBuckets - 1) + (bits >> 31 ? kBuckets : 0);
  }

 private:
  // Whether every bucket holds one threshold at most.
  bool fill_buckets() {
    for (int i = 0; i < 254; i++)
      if (!(sorted[i] < sorted[i + 1])) return false;
    int code = 0;
    const auto advance = [&](float x) {
      while (code < 255 && (code % 2 ? x >= sorted[code] : x > sorted[code])) code++;
    };
    for (int i = -kBuckets; i < kBuckets; i++) {  // in increasing order of values
      const int bucket = i < 0 ? -1 - i : i;
      const auto inner = bucket ? std::bit_cast<float>(static_cast<uint32_t>(kLeast + bucket) << kDropped) : 0.0f;
      const auto outer = bucket < kBuckets - 1 ? std::bit_cast<float>((static_cast<uint32_t>(kLeast + bucket + 1) << kDropped) - 1)
                                               : std::numeric_limits<float>::infinity();
      advance(i < 0 ? -outer : inner);
      const int least = code;
      advance(i < 0 ? -inner : outer);
      if (code > least + 1) return false;
      float bound = std::numeric_limits<float>::quiet_NaN();  // never
      if (code > least) bound = least % 2 ? sorted[least] : std::nextafter(sorted[least], std::numeric_limits<float>::infinity());
      buckets[i < 0 ? kBuckets + bucket : bucket] = {bound, least};
    }
    return true;
  }
};

// found[i] = buckets[at[i]]. Not for the vector unit, whose gathers are slower than plain loads.
__attribute__((noinline)) inline void look_up(const Thresholds::Bucket* buckets, const uint16_t* at, int n,
                                              Thresholds::Bucket* found) {
  for (int i = 0; i < n; i += 4)
    for (int j = 0; j < 4; j++) __builtin_memcpy(found + i + j, buckets + at[i + j], sizeof *found);
}

}  // namespace bnb::cpu
