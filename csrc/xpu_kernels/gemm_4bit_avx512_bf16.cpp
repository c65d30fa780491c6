// gemm_4bit for bfloat16 on CPU devices with AVX512-BF16, whose dot product of bfloat16 pairs SYCL does not offer: inline
// assembly, which the OpenCL CPU device takes in SPIR-V.
//
// A work-group is one work-item that holds whole vectors: rows of A lie in the lanes, 16 * VECTORS of them, and a pair of
// weights is what the lanes share. Of GROUP_ROWS rows of B the work-item writes CHUNK columns of ROWS rows at a time, scaled and
// rounded to bfloat16 (CUDA's weights), into the first cache, between the products of X with those that it wrote before.
#include "dot_4bit.h"
#include "vectors.h"

namespace bnb {

using f32x16 = x16<float>;
using u32x16 = x16<u32>;
using u16x16 = x16<u16>;
using u8x16 = x16<u8>;
using u32x8 = u32 __attribute__((ext_vector_type(8)));

// sum[i] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1]. SPIR-V drops that an operand is read and written ("+v"): hence the move, which
// no unit has to do.
BNB_INLINE void add_products(f32x16& sum, u32x16 a, u32x16 b) {
  f32x16 result;
  __asm__("vmovaps %3, %0\n\tvdpbf16ps %2, %1, %0" : "=&v"(result) : "v"(a), "v"(b), "v"(sum));
  sum = result;
}

// The same with two pairs, a0 with the first that `pairs` points to and a1 with the second: one move for two products.
BNB_INLINE void add_products_of_two(f32x16& sum, u32x16 a0, u32x16 a1, const u16* pairs) {
  f32x16 result;
  __asm__ volatile("vmovaps %4, %0\n\tvdpbf16ps (%3){1to16}, %1, %0\n\tvdpbf16ps 4(%3){1to16}, %2, %0"
                   : "=&v"(result)
                   : "v"(a0), "v"(a1), "r"(pairs), "v"(sum)
                   : "memory");
  sum = result;
}

BNB_INLINE u32x8 to_bfloat16(f32x16 x) {
  u32x8 result;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(result) : "v"(x));
  return result;
}

// 32 values of 16 bits out of a table of 32, by the low 5 bits of each index.
BNB_INLINE u32x16 look_up(u32x16 table, u32x16 index) {
  u32x16 result;
  __asm__("vpermw %1, %2, %0" : "=v"(result) : "v"(table), "v"(index));
  return result;
}

// X[p * padded_m + m] = columns 2p and 2p + 1 of row m of A; 0 for m from M to padded_m and for a column K. A work-group takes
// GROUP_PAIRS pairs.
template <int GROUP_PAIRS>
BNB_KERNEL_OF_ONE
kPackPairs(const bfloat16* A, u32* X, i64 M, i64 K, i64 lda, i64 padded_m) {
  const auto load = [&](i64 m, i64 p) __attribute__((always_inline)) {
    const u16* const from = reinterpret_cast<const u16*>(A) + m * lda + 2 * p;
    if (2 * p + 32 <= K) return vector_at<u32x16>(from);
    u32x16 pairs = 0;
    for (int i = 0; 2 * (p + i) < K; i++)
      pairs[i] = from[2 * i] | (2 * (p + i) + 1 < K ? static_cast<u32>(from[2 * i + 1]) << 16 : 0);
    return pairs;
  };
  pack_transposed<GROUP_PAIRS>(X, (K + 1) / 2, M, padded_m, load);
}

// For any K and any B, in parts as kgemm_4bit_inference_along_m. X is kPackPairs', padded_m is tiles_m * 16 * VECTORS.
template <int GROUP_ROWS, int ROWS, int VECTORS, int CHUNK>
BNB_KERNEL_OF_ONE
kgemm_4bit_inference_avx512_bf16(i64 M, i64 N, i64 K, const u32* X, const u8* B, const float* absmax, const u8* absmax_8bit,
                                 const float* absmax_code, const float* absmax_offset, const bfloat16* bias, const float* datatype,
                                 i32 data_type, bfloat16* out, i64 padded_m, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  constexpr int kTile = 16 * VECTORS, kSpare = 32, kStride = CHUNK + kSpare, kPart = kSpare + ROWS * kStride;
  constexpr int kSteps = CHUNK / 32, kPairs = 16;  // a step decodes ROWS times 32 codes beside so many pairs
  static_assert(GROUP_ROWS % ROWS == 0 && CHUNK % 32 == 0);
  alignas(64) static local_memory<u16[2 * kPart]> weights;
  alignas(64) static local_memory<float[GROUP_ROWS * kTile]> sums;
  alignas(64) static local_memory<u16[GROUP_ROWS * kTile]> rounded_sums;
  u16* w = weights.data + kSpare;
  u16* next_w = w + kPart;
  float* const total = sums.data;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const f32x16 codes = vector_at<f32x16>(datatype ? datatype : data_type == NF4 ? kNF4 : kFP4);
  const i64 row_group = tiles_m == 1 ? group_id() : group_id() / tiles_m;
  const i64 m0 = (group_id() - row_group * tiles_m) * kTile;
  const i64 row0 = row_group * GROUP_ROWS;
  const int rows = N - row0 < GROUP_ROWS ? static_cast<int>(N - row0) : GROUP_ROWS;
  const i64 bytes = ((N - 1) * ldb + K + 1) >> 1;

  // Writes 32 weights of one block, whose first code is `start`. The table is looked up by the low 5 bits, of which it does not
  // heed the fifth.
  const auto decode = [&](u16* to, i64 start, u8x16 c) __attribute__((always_inline)) {
    const u32x8 scaled = to_bfloat16(codes * statistics.scale(start >> shift));
    const u32x16 table = __builtin_shufflevector(scaled, scaled, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    const u32x16 wide = __builtin_convertvector(c, u32x16);
    put(to, look_up(table, wide >> 4 | wide << 16));
  };
  const auto prefetch_row = [&](i64 start) __attribute__((always_inline)) {
    prefetch(B + ((start + CHUNK) >> 1));
    prefetch_scale(statistics, (start + 4 * CHUNK) >> shift);
  };
  const auto decode_part = [&](u16* to, const Part& part) __attribute__((always_inline)) {
    if (!part.columns) return;
    for (int r = part.r; r < part.r + ROWS && r < rows; r++, to += kStride) {  // rows behind: multiplied, and not written
      const i64 start = (row0 + r) * ldb + part.k0;
      prefetch_row(start);
#pragma unroll 1
      for (int k = -static_cast<int>(start & 31); k < part.columns; k += 32) {
        const i64 from = (start + k) >> 1;
        decode(to + k, start + k, first_of(B + from, bytes - from));
      }
      if (part.columns % 2) to[part.columns] = 0;
    }
  };

  decode_part(w, {0, 0, columns_from<CHUNK>(0, K)});
  for_parts<ROWS, CHUNK>(rows, K, ldb, [&](const Part& part, const Part& next, bool beside) __attribute__((always_inline)) {
    f32x16 sum[ROWS][VECTORS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int v = 0; v < VECTORS; v++) sum[i][v] = 0.0f;  // of a part alone: a long chain of additions loses too much
    const auto multiply = [&](int p) __attribute__((always_inline)) {
      const u32* const from = X + (part.k0 / 2 + p) * padded_m + m0;
      u32x16 x[VECTORS];
#pragma unroll
      for (int v = 0; v < VECTORS; v++) x[v] = vector_at<u32x16>(from + 16 * v);
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const u32x16 pair = vector_at<u32>(w + i * kStride + 2 * p);
#pragma unroll
        for (int v = 0; v < VECTORS; v++) add_products(sum[i][v], x[v], pair);
      }
    };
    const auto multiply_two = [&](int p) __attribute__((always_inline)) {
      const u32* const from = X + (part.k0 / 2 + p) * padded_m + m0;
      u32x16 first[VECTORS], second[VECTORS];
#pragma unroll
      for (int v = 0; v < VECTORS; v++) first[v] = vector_at<u32x16>(from + 16 * v);
#pragma unroll
      for (int v = 0; v < VECTORS; v++) second[v] = vector_at<u32x16>(from + padded_m + 16 * v);
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) add_products_of_two(sum[i][v], first[v], second[v], w + i * kStride + 2 * p);
    };
    if (beside) {
#pragma unroll 1
      for (int step = 0; step < kSteps; step++) {
#pragma unroll
        for (int q = 0; q < kPairs; q += 2) {
          multiply_two(step * kPairs + q);
#pragma unroll
          for (int row = q * ROWS / kPairs; row < (q + 2) * ROWS / kPairs; row++) {
            const i64 start = (row0 + next.r + row) * ldb + next.k0 + step * 32;
            if (step == 0) prefetch_row(start);
            decode(next_w + row * kStride + step * 32, start, vector_at<u8x16>(B + (start >> 1)));
          }
        }
      }
    } else {
      const int pairs = (part.columns + 1) / 2;
#pragma unroll 1
      for (int p = 0; p + 2 <= pairs; p += 2) multiply_two(p);
      if (pairs % 2) multiply(pairs - 1);
      decode_part(next_w, next);
    }
    exchange(w, next_w);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        float* const to = total + (part.r + i) * kTile + 16 * v;
        put(to, part.k0 ? vector_at<f32x16>(to) + sum[i][v] : sum[i][v]);
      }
  });

  u16* const rounded = rounded_sums.data;  // [row][m]
  for (int r = 0; r < rows; r++) {
    const float add = bias ? to_float(bias[row0 + r]) : 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      f32x16 x = add;
      if (K) x += vector_at<f32x16>(total + r * kTile + 16 * v);
      const u32x16 bits = bits_as<u32x16>(x);
      const u32x16 nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      put(rounded + r * kTile + 16 * v, __builtin_convertvector(x != x ? u32x16(0x7fc0) : nearest, u16x16));
    }
  }
  const int here = M - m0 < kTile ? static_cast<int>(M - m0) : kTile;
  for (int m = 0; m < here; m++) {
    bfloat16* const to = out + (m0 + m) * ldc + row0;
    for (int r = 0; r < rows; r++) to[r] = bfloat16{rounded[r * kTile + m]};
  }
}

}  // namespace bnb
