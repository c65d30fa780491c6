// gemm_4bit for bfloat16 on CPU devices with AVX512-BF16, whose dot product of bfloat16 pairs SYCL does not offer: inline
// assembly, which the OpenCL CPU device takes in SPIR-V.
//
// A work-group is one work-item that holds whole vectors: rows of A lie in the lanes, 16 * VECTORS of them, and a pair of
// weights is what the lanes share. Of GROUP_ROWS rows of B the work-item writes CHUNK columns, scaled and rounded to bfloat16
// (CUDA's weights), into the first cache and multiplies them with X, ROWS rows at a time.
#include "dot_4bit.h"

namespace bnb {

using f32x16 = float __attribute__((ext_vector_type(16)));
using u32x16 = u32 __attribute__((ext_vector_type(16)));
using u32x8 = u32 __attribute__((ext_vector_type(8)));
using u16x16 = u16 __attribute__((ext_vector_type(16)));
using u8x16 = u8 __attribute__((ext_vector_type(16)));

// Vectors in memory lie at any alignment. A vector type that says so is not enough: CPU devices before 2026.2 do not heed it.
template <class V>
BNB_INLINE V vector_at(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
BNB_INLINE void put(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// sum[i] += a[2i] * b[2i] + a[2i + 1] * b[2i + 1]
BNB_INLINE void add_products(f32x16& sum, u32x16 a, u32x16 b) { __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }

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

BNB_INLINE void prefetch(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }

// X[p * padded_m + m] = columns 2p and 2p + 1 of row m of A; 0 for m from M to padded_m and for a column K. A sub-group takes
// 32 columns.
template <int SUBG_SIZE>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kPackPairs(const bfloat16* A, u32* X, i64 M, i64 K, i64 lda, i64 padded_m) {
  static_assert(SUBG_SIZE == 16);
  const i64 p = group_id() * 16 + lane_id();
  if (2 * p >= K) return;
  const bool both = 2 * p + 1 < K;
  for (i64 m = 0; m < padded_m; m++) {
    const bfloat16* const from = A + m * lda + 2 * p;
    const u32 first = m < M ? from[0].bits : 0, second = m < M && both ? from[1].bits : 0;
    X[p * padded_m + m] = first | second << 16;
  }
}

// For any K and any B, as kgemm_4bit_inference_along_m. X is kPackPairs', padded_m is tiles_m * 16 * VECTORS.
template <int GROUP_ROWS, int ROWS, int VECTORS, int CHUNK>
BNB_KERNEL_OF_ONE
kgemm_4bit_inference_avx512_bf16(i64 M, i64 N, i64 K, const u32* X, const u8* B, const float* absmax, const u8* absmax_8bit,
                                 const float* absmax_code, const float* absmax_offset, const bfloat16* bias, const float* datatype,
                                 i32 data_type, bfloat16* out, i64 padded_m, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  static_assert(GROUP_ROWS % ROWS == 0 && CHUNK % 32 == 0);
  constexpr int kTile = 16 * VECTORS, kSpare = 32, kStride = CHUNK + kSpare;
  alignas(64) static local_memory<u16[kSpare + GROUP_ROWS * kStride]> weights;
  alignas(64) static local_memory<float[GROUP_ROWS * kTile]> sums;
  u16* const w = weights.data + kSpare;
  float* const total = sums.data;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const f32x16 codes = vector_at<f32x16>(datatype ? datatype : data_type == NF4 ? kNF4 : kFP4);
  const i64 row_group = tiles_m == 1 ? group_id() : group_id() / tiles_m;
  const i64 m0 = (group_id() - row_group * tiles_m) * kTile;
  const i64 row0 = row_group * GROUP_ROWS;
  const int rows = N - row0 < GROUP_ROWS ? static_cast<int>(N - row0) : GROUP_ROWS;
  const i64 bytes = ((N - 1) * ldb + K + 1) >> 1;

  for (i64 k0 = 0; k0 < K; k0 += CHUNK) {
    const int columns = K - k0 < CHUNK ? static_cast<int>(K - k0) : CHUNK;
    for (int r = 0; r < rows; r++) {  // what lies behind them is multiplied, and not written
      const i64 start = (row0 + r) * ldb + k0;
      prefetch(B + ((start + CHUNK) >> 1));
#pragma unroll 1
      for (int k = -static_cast<int>(start & 31); k < columns; k += 32) {  // 32 codes of one block
        const u32x8 scaled = to_bfloat16(codes * statistics.scale((start + k) >> shift));
        const u32x16 table = __builtin_shufflevector(scaled, scaled, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
        const u8* const from = B + ((start + k) >> 1);
        u8x16 c = 0;
        if (from + 16 <= B + bytes) {
          c = vector_at<u8x16>(from);
        } else {
          for (int i = 0; i < 16; i++)
            if (from + i < B + bytes) c[i] = from[i];
        }
        const u32x16 wide = __builtin_convertvector(c, u32x16);
        // The table is looked up by the low 5 bits, of which it does not heed the fifth.
        put(w + r * kStride + k, look_up(table, wide >> 4 | wide << 16));
      }
      if (columns % 2) w[r * kStride + columns] = 0;
    }
    for (int r = 0; r < rows; r += ROWS) {
      f32x16 sum[ROWS][VECTORS];
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) sum[i][v] = 0.0f;  // of a chunk alone: a long chain of additions loses too much
#pragma unroll 1
      for (int p = 0; p < (columns + 1) / 2; p++) {
        const u32* const from = X + (k0 / 2 + p) * padded_m + m0;
        u32x16 x[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) x[v] = vector_at<u32x16>(from + 16 * v);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
          const u32x16 pair = vector_at<u32>(w + (r + i) * kStride + 2 * p);
#pragma unroll
          for (int v = 0; v < VECTORS; v++) add_products(sum[i][v], x[v], pair);
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
          float* const to = total + (r + i) * kTile + 16 * v;
          put(to, k0 ? vector_at<f32x16>(to) + sum[i][v] : sum[i][v]);
        }
    }
  }

  u16* const rounded = w;  // [row][m]
  static_assert(kTile <= kStride);
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
