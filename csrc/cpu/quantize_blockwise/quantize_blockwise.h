// quantize_blockwise on CPUs: absmax of each block, and each element times its reciprocal rounded to a code. Every
// decision is that of bitsandbytes' CUDA kernels: ties, blocks of zeros, NaN, the reciprocal's rounding.
#pragma once
#include <bit>
#include <cmath>
#include <limits>

#include "../../reciprocal.h"
#include "../lanes.h"

namespace bnb::cpu {

struct Quantize {
  int dtype, data_type;
  const float* code;             // 256 values, of 8 bits alone
  const Thresholds* thresholds;  // null if the values do not increase
  const void* A;
  float* absmax;
  uint8_t* out;
  int64_t blocksize, n;
};
// Blocks first to last; also the last block of all, which may be short.
using QuantizeBlocks = void (*)(const Quantize&, int64_t first, int64_t last);
extern Slot<QuantizeBlocks> quantize_4bit, quantize_8bit;

// ---- 4 bits ---------------------------------------------------------------------------------------------------------
// Where the codes of a 4-bit type change, found through buckets of equal width, of which none holds more than one bound:
// x, of FP4 its magnitude, is in bucket `bits of (x * scale + offset) % size`, and has the code above if it is greater
// than the bucket's bound, else the code below. Infinity comes to bucket 0, which no number does.
struct Buckets {
  float scale, offset;
  int size;
  alignas(64) float bound[32];
  alignas(64) int32_t below[32], above[32];

  constexpr uint32_t of(float x) const { return std::bit_cast<uint32_t>(x * scale + offset) % static_cast<uint32_t>(size); }
};

constexpr float kRounding = 0x1.8p23f;  // floats of this size are whole numbers, which their low bits count

constexpr Buckets buckets_of(int data_type) {
  const bool nf4 = data_type == BNB_NF4;
  const int bounds = nf4 ? 15 : 7;
  constexpr int order[8] = {0, 1, 6, 7, 4, 5, 2, 3};  // FP4's codes by magnitude
  Buckets b{nf4 ? 15.2f : 14.4f, kRounding + (nf4 ? 16 : 1), nf4 ? 32 : 16, {}, {}, {}};
  const auto code = [&](int rank) { return nf4 ? rank : order[rank]; };
  int rank = 0;
  for (int bucket = 1; bucket < b.size; bucket++) {
    b.below[bucket] = b.above[bucket] = code(rank);
    b.bound[bucket] = std::numeric_limits<float>::infinity();
    if (rank == bounds) continue;
    const float bound = nf4 ? kNF4Bounds[rank] : kFP4Bounds[rank];
    if (b.of(bound) != static_cast<uint32_t>(bucket)) continue;
    b.bound[bucket] = bound;
    b.above[bucket] = code(++rank);
  }
  b.above[0] = code(bounds);  // infinity
  return b;
}
constexpr Buckets kNF4Buckets = buckets_of(BNB_NF4), kFP4Buckets = buckets_of(BNB_FP4);

// Every bound has a bucket of its own, and is so far from the next that rounding does not matter.
constexpr bool are_sound(const Buckets& b, int bounds) {
  int found = 0;
  for (int bucket = 1; bucket < b.size; bucket++) {
    if (b.above[bucket] == b.below[bucket]) continue;
    found++;
    const float bound = b.bound[bucket], margin = 0.01f / b.scale;
    const auto expected = static_cast<uint32_t>(bucket);
    if (b.of(bound - margin) != expected || b.of(bound + margin) != expected) return false;
  }
  return found == bounds;
}
static_assert(are_sound(kNF4Buckets, 15) && are_sound(kFP4Buckets, 7));

template <int DATA_TYPE>
inline uint32_t code_of_4bit(float x) {
  if (x != x) return 0;
  constexpr const Buckets& b = DATA_TYPE == BNB_NF4 ? kNF4Buckets : kFP4Buckets;
  const float key = DATA_TYPE == BNB_NF4 ? x : std::fabs(x);
  const uint32_t bucket = b.of(key);
  const auto code = static_cast<uint32_t>(key > b.bound[bucket] ? b.above[bucket] : b.below[bucket]);
  return DATA_TYPE == BNB_FP4 && x < 0 ? code | 8 : code;
}

// What a block's elements are multiplied by. NaN for a block of zeros: CUDA multiplies its zeros by infinity.
inline float block_scale(float absmax) {
  const float scale = fast_reciprocal(std::max(absmax, 0.0f));
  return scale < std::numeric_limits<float>::infinity() ? scale : std::numeric_limits<float>::quiet_NaN();
}

// ---- 8 bits ---------------------------------------------------------------------------------------------------------
// CUDA's search: of odd values first, then of the midpoint to the neighbour of an even one. For any 256 values.
inline uint32_t code_among(const float* code, float x) {
  int pivot = 127, above = 255, below = 0;
  for (int step = 64; step; step /= 2) {
    const bool greater = x > code[pivot];
    (greater ? below : above) = pivot;
    pivot += greater ? step : -step;
  }
  const bool up = x > code[pivot];
  const int neighbour = up ? above : below;
  const float bound = (code[neighbour] + code[pivot]) * 0.5f;
  return static_cast<uint32_t>((up ? x > bound : x < bound) ? neighbour : pivot);
}

}  // namespace bnb::cpu
