// The matrix unit of a GPU, as far as the product of a few rows of activations with 4-bit weights needs it: 16 rows of
// weights times 8 tokens, 16 values of k at a time, 16-bit factors, fp32 sums.
//
// MatrixUnit<T, 16> is XMX of Intel GPUs with sub-groups of 16, MatrixUnit<T, 32> is mma.sync of NVIDIA GPUs (the
// kernels as PTX). They differ in which lane holds what; the kernel is the same. Where the source is compiled without the
// instruction (BNB_XMX, NVPTX), shuffles emulate it, so that a CPU device runs the same kernel to be checked by value.
//
// A weight of the table goes in as two 16-bit numbers, high + low, whose sum is the float32 value to 2^-17 of it and
// better: two multiplications instead of one, and products as exact as those of float32.
#pragma once
#include "device.h"

namespace bnb {

// The table in the lanes: the value rounded to T, and in the upper half what is left of it.
template <class T>
BNB_INLINE u32 high_and_low(float value) {
  const T high = from_float<T>(value), low = from_float<T>(value - to_float(high));
  return bits_as<u16>(high) | static_cast<u32>(bits_as<u16>(low)) << 16;
}

// The factors of two codes next to each other, high parts and low parts.
struct Factors {
  u32 high, low;
};

BNB_INLINE Factors look_up_two(u32 table, u32 word0, int j0, u32 word1, int j1) {
  const u32 a = look_up(table, word0, j0), b = look_up(table, word1, j1);
  return {(a & 0xffff) | b << 16, a >> 16 | (b & 0xffff0000u)};
}

template <class T>
BNB_INLINE float low_half(u32 word) {
  return to_float(bits_as<T>(static_cast<u16>(word)));
}
template <class T>
BNB_INLINE float high_half(u32 word) {
  return to_float(bits_as<T>(static_cast<u16>(word >> 16)));
}

// What both have. A lane holds codes of kSlots rows, and shares each row with kShare - 1 neighbours. Its kSums sums of a
// tile belong to kSums / kSlots tokens of each of those rows.
//   row(lane, slot)      the row of a tile whose codes the lane holds, and whose sums
//   part(lane)           which of the row's kShare parts of a step it holds
//   kLoads, loaded(i)    tokens of which a lane holds activations
//   offset<WORDS>()      where in a step the lane's activations begin; kHeld<WORDS> of each token
//   at(row, token)       where the sum lies among kSums * SUBG_SIZE: sum * SUBG_SIZE + lane
//   multiply             sums += weights * activations, of multiplication i of a step
template <class T, int SUBG_SIZE>
struct MatrixUnit;

#ifdef BNB_XMX
typedef short short8 __attribute__((ext_vector_type(8)));
typedef int int8 __attribute__((ext_vector_type(8)));
typedef float float8 __attribute__((ext_vector_type(8)));
}  // namespace bnb
__attribute__((sycl_device)) bnb::float8 intel_sub_group_f16_f16_matrix_mad_k16(bnb::short8, bnb::int8, bnb::float8);
__attribute__((sycl_device)) bnb::float8 intel_sub_group_bf16_bf16_matrix_mad_k16(bnb::short8, bnb::int8, bnb::float8);
namespace bnb {
#endif

// XMX: lane n holds row n of the weights; activations of a token are spread over the lanes. In a step of 8 * WORDS codes,
// position p of multiplication i stands for k = p * WORDS / 2 + i, so that a lane loads neighbouring activations.
template <class T>
struct MatrixUnit<T, 16> {
  static constexpr int kRows = 16, kTokens = 8, kShare = 1, kSlots = 1, kSums = 8, kLoads = 8;
  template <int WORDS>
  static constexpr int kHeld = WORDS / 2;
  template <int WORDS>
  static constexpr int kMultiplications = WORDS / 2;
  struct Operand {
    u32 high[8], low[8];
  };

  static BNB_INLINE u32 row(u32 lane, int) { return lane; }
  static BNB_INLINE u32 part(u32) { return 0; }
  static BNB_INLINE u32 loaded(u32, int i) { return i; }
  template <int WORDS>
  static BNB_INLINE u32 offset(u32 lane) {
    return lane * kHeld<WORDS>;
  }
  static BNB_INLINE u32 at(u32 row, u32 token) { return token * 16 + row; }

  template <int WORDS>
  static BNB_INLINE Operand weights(u32 table, const u32 (&words)[kSlots][WORDS], int i) {
    Operand result;
#pragma unroll
    for (int p = 0; p < 8; p++) {
      const int k0 = 2 * p * kHeld<WORDS> + i, k1 = k0 + kHeld<WORDS>;
      const Factors f = look_up_two(table, words[0][k0 / 8], k0 % 8, words[0][k1 / 8], k1 % 8);
      result.high[p] = f.high;
      result.low[p] = f.low;
    }
    return result;
  }

  template <int HELD>
  static BNB_INLINE void multiply(float (&sums)[kSums], const u32 (&w)[8], const pack<T, HELD> (&x)[kLoads], int i) {
#ifdef BNB_XMX
    short8 a;
    int8 b;
    float8 c;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      a[j] = bits_as<short>(x[j].v[i]);
      b[j] = w[j];
      c[j] = sums[j];
    }
    if constexpr (__is_same(T, half))
      c = intel_sub_group_f16_f16_matrix_mad_k16(a, b, c);
    else
      c = intel_sub_group_bf16_bf16_matrix_mad_k16(a, b, c);
#pragma unroll
    for (int j = 0; j < 8; j++) sums[j] = c[j];
#else
    for (int p = 0; p < 8; p++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float mine = to_float(x[j].v[i]);
        sums[j] += shuffle(mine, 2 * p) * low_half<T>(w[p]) + shuffle(mine, 2 * p + 1) * high_half<T>(w[p]);
      }
    }
#endif
  }
};

// mma.sync.m16n8k16: four lanes hold parts of rows lane / 4 and lane / 4 + 8. In a step of 32 * WORDS codes each lane has
// 8 * WORDS neighbours of a row, of which multiplication i takes four.
template <class T>
struct MatrixUnit<T, 32> {
  static constexpr int kRows = 16, kTokens = 8, kShare = 4, kSlots = 2, kSums = 4, kLoads = 1;
  template <int WORDS>
  static constexpr int kHeld = 8 * WORDS;
  template <int WORDS>
  static constexpr int kMultiplications = 2 * WORDS;
  struct Operand {
    u32 high[4], low[4];
  };

  static BNB_INLINE u32 row(u32 lane, int slot) { return lane / 4 + 8 * slot; }
  static BNB_INLINE u32 part(u32 lane) { return lane % 4; }
  static BNB_INLINE u32 loaded(u32 lane, int) { return lane / 4; }
  template <int WORDS>
  static BNB_INLINE u32 offset(u32 lane) {
    return lane % 4 * kHeld<WORDS>;
  }
  static BNB_INLINE u32 at(u32 row, u32 token) { return (row / 8 * 2 + token % 2) * 32 + row % 8 * 4 + token / 2; }

  template <int WORDS>
  static BNB_INLINE Operand weights(u32 table, const u32 (&words)[kSlots][WORDS], int i) {
    Operand result;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const u32 word = words[p % 2][i / 2];
      const int j = i % 2 * 4 + p / 2 * 2;
      const Factors f = look_up_two(table, word, j, word, j + 1);
      result.high[p] = f.high;
      result.low[p] = f.low;
    }
    return result;
  }

  template <int HELD>
  static BNB_INLINE void multiply(float (&sums)[kSums], const u32 (&w)[4], const pack<T, HELD> (&x)[kLoads], int i) {
    const auto words = bits_as<pack<u32, HELD / 2>>(x[0]);
    const u32 x0 = words.v[2 * i], x1 = words.v[2 * i + 1];
#ifdef __NVPTX__
    if constexpr (__is_same(T, half))
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
          : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(x0), "r"(x1));
#else
    const u32 lane = lane_id(), first = lane & ~3u, token = lane % 4 * 2;
    for (u32 q = 0; q < 4; q++) {
#pragma unroll
      for (int half_of_k = 0; half_of_k < 2; half_of_k++) {
        const u32 mine = half_of_k ? x1 : x0;
        const u32 from[2] = {shuffle(mine, token * 4 + q), shuffle(mine, token * 4 + 4 + q)};
        const u32 weight[2] = {shuffle(w[half_of_k * 2], first + q), shuffle(w[half_of_k * 2 + 1], first + q)};
#pragma unroll
        for (int c = 0; c < 4; c++)
          sums[c] +=
              low_half<T>(weight[c / 2]) * low_half<T>(from[c % 2]) + high_half<T>(weight[c / 2]) * high_half<T>(from[c % 2]);
      }
    }
#endif
  }
};

}  // namespace bnb
