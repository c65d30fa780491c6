// The product of a few rows of activations with 4-bit weights, which are never written out.
//
// On CPU devices, for up to 8 rows of A, a lane owns ROWS rows of B and TILE_M rows of A: it looks a weight up once (among
// the lanes, one shuffle) and multiplies it with TILE_M activations, which all lanes share: one load for a whole sub-group,
// if the activations lie together. They do in X, A widened to fp32 and transposed (kWidenTransposed). A block's scale is
// applied to its partial sums. For more rows, and where blocks straddle rows, kgemm_4bit_inference_along_m.
#include "dot_4bit.h"

namespace bnb {

// X[k * padded_m + m] = A[m * lda + k], and 0 for m from M to padded_m. A sub-group takes 32 columns.
template <class T, int SUBG_SIZE>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kWidenTransposed(const T* A, float* X, i64 M, i64 K, i64 lda, i64 padded_m) {
  static_assert(SUBG_SIZE == 16);
  const u32 lane = lane_id();
  const i64 k0 = group_id() * 32;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const i64 k = k0 + 16 * h + lane;
    if (k >= K) continue;
    for (i64 m = 0; m < padded_m; m++) X[k * padded_m + m] = m < M ? to_float(A[m * lda + k]) : 0.0f;
  }
}

// For CPU devices. K and ldb are multiples of 32, B is aligned to 4 bytes, X to TILE_M floats; padded_m is
// tiles_m * TILE_M. A work-group has ROW_GROUPS sub-groups. The other arguments are those of dot_4bit.
template <class T, int SUBG_SIZE, int ROW_GROUPS, int ROWS, int TILE_M>
BNB_KERNEL(SUBG_SIZE* ROW_GROUPS, SUBG_SIZE)
kgemm_4bit_inference(i64 M, i64 N, i64 K, const float* X, const u8* B, const float* absmax, const u8* absmax_8bit,
                     const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype, i32 data_type,
                     T* out, i64 padded_m, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id();
  const float in_lane = datatype ? datatype[lane & 15] : data_type == NF4 ? kNF4[lane & 15] : kFP4[lane & 15];
  const i64 row_group = tiles_m == 1 ? group_id() : group_id() / tiles_m;
  const i64 m0 = (group_id() - row_group * tiles_m) * TILE_M;
  const i64 row0 = (row_group * ROW_GROUPS + sub_group_id()) * (SUBG_SIZE * ROWS);

  float sum[ROWS][TILE_M] = {};
  i64 start[ROWS];  // past the last row, the last row again: read, and not written
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const i64 row = row0 + r * SUBG_SIZE + lane;
    start[r] = (row < N ? row : N - 1) * ldb;
  }
  for (i64 k = 0; k < K; k += 32) {  // 32 codes of a row lie in one block
    float partial[ROWS][TILE_M] = {};
    u32 words[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) words[r][i] = reinterpret_cast<const u32*>(B + ((start[r] + k) >> 1))[i];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const auto x = *reinterpret_cast<const pack<float, TILE_M>*>(X + (k + i * 8 + j) * padded_m + m0);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float w = shuffle(in_lane, code_of(words[r][i], j));
#pragma unroll
          for (int m = 0; m < TILE_M; m++) partial[r][m] += w * x.v[m];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const float scale = statistics.scale((start[r] + k) >> shift);
#pragma unroll
      for (int m = 0; m < TILE_M; m++) sum[r][m] += partial[r][m] * scale;
    }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const i64 row = row0 + r * SUBG_SIZE + lane;
    if (row < N) {
      const float add = bias ? to_float(bias[row]) : 0.0f;
#pragma unroll
      for (int m = 0; m < TILE_M; m++)
        if (m0 + m < M) out[(m0 + m) * ldc + row] = from_float<T>(sum[r][m] + add);
    }
  }
}

// For CPU devices, and more rows of A or any K: A's rows lie in the lanes, 16 * VECTORS of them, and a weight is what they
// share. A sub-group writes CHUNK columns of GROUP_ROWS rows of B, scaled, into local memory (the first cache) and multiplies
// them with X, ROWS rows at a time. Codes are taken 32 at a time as B holds them, whatever column their first one is: what
// belongs to other rows lands in the kSpare values between the rows. The other arguments are those of dot_4bit.
template <class T, int SUBG_SIZE, int GROUP_ROWS, int ROWS, int VECTORS, int CHUNK>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kgemm_4bit_inference_along_m(i64 M, i64 N, i64 K, const float* X, const u8* B, const float* absmax, const u8* absmax_8bit,
                             const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                             i32 data_type, T* out, i64 padded_m, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  static_assert(SUBG_SIZE == 16 && GROUP_ROWS % 16 == 0 && 16 % ROWS == 0 && CHUNK % 32 == 0);
  constexpr int kTile = 16 * VECTORS, kSpare = 32, kStride = CHUNK + kSpare;
  static local_memory<float[kSpare + GROUP_ROWS * kStride]> weights;
  static local_memory<float[GROUP_ROWS * kTile]> sums;
  float* const w = weights.data + kSpare;
  float* const total = sums.data;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id(), nibble = lane & 1 ? 0 : 4;
  const float in_lane = datatype ? datatype[lane & 15] : data_type == NF4 ? kNF4[lane & 15] : kFP4[lane & 15];
  const i64 row_group = tiles_m == 1 ? group_id() : group_id() / tiles_m;
  const i64 m0 = (group_id() - row_group * tiles_m) * kTile;
  const i64 row0 = row_group * GROUP_ROWS;
  const int rows = N - row0 < GROUP_ROWS ? static_cast<int>(N - row0) : GROUP_ROWS;
  const i64 bytes = ((N - 1) * ldb + K + 1) >> 1;

  for (i64 k0 = 0; k0 < K; k0 += CHUNK) {
    const int columns = K - k0 < CHUNK ? static_cast<int>(K - k0) : CHUNK;
    for (int r = 0; r < rows; r++) {  // what lies behind them is multiplied, and not written
      const i64 start = (row0 + r) * ldb + k0;
      const int before = start & 31;
      for (int k = -before; k < columns; k += 32) {  // 32 codes of one block
        const i64 from = (start + k) >> 1;
        const u32 c = from + 16 <= bytes ? (B + from)[lane] : from + lane < bytes ? (B + from)[lane] : 0;
        const float scale = statistics.scale((start + k) >> shift);
        float* const to = w + r * kStride + k;
        to[lane] = shuffle(in_lane, shuffle(c, lane >> 1) >> nibble & 15) * scale;
        (to + 16)[lane] = shuffle(in_lane, shuffle(c, 8 + (lane >> 1)) >> nibble & 15) * scale;
      }
    }
    sub_group_barrier();
    for (int r = 0; r < rows; r += ROWS) {
      float sum[ROWS][VECTORS];
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) sum[i][v] = 0.0f;  // of a chunk alone: a long chain of additions loses too much
      for (int k = 0; k < columns; k++) {
        const float* const from = X + (k0 + k) * padded_m + m0;
        float x[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) x[v] = (from + 16 * v)[lane];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
          const float weight = w[(r + i) * kStride + k];
#pragma unroll
          for (int v = 0; v < VECTORS; v++) sum[i][v] = __builtin_fmaf(weight, x[v], sum[i][v]);
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
          float* const to = total + (r + i) * kTile + 16 * v;
          to[lane] = k0 ? to[lane] + sum[i][v] : sum[i][v];
        }
    }
    sub_group_barrier();
  }

  const int here = M - m0 < kTile ? static_cast<int>(M - m0) : kTile;
  for (int r = 0; r < rows; r += 16) {
    const u32 row = r + lane;
    if (row < static_cast<u32>(rows)) {
      const float add = bias ? to_float((bias + row0)[row]) : 0.0f;
      for (int m = 0; m < here; m++) (out + (m0 + m) * ldc + row0)[row] = from_float<T>(K ? total[row * kTile + m] + add : add);
    }
  }
}

// The same for any K and any pointer, with A as it is: its lanes share k, see dot_4bit.h.
template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int ROWS, int STEPS, int TILE_M>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kgemm_4bit_inference_along_k(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                             const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                             i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  dot_4bit<T, GROUP_SIZE, NUM_PER_THREAD, SUBG_SIZE, ROWS, STEPS, TILE_M>(M, N, K, A, B,
                                                                          {absmax, absmax_8bit, absmax_code, absmax_offset}, bias,
                                                                          datatype, data_type, out, lda, ldb, ldc, tiles_m, shift);
}

}  // namespace bnb
