// LLM.int8() on CPU devices: the product of few rows, exact or scaled back, and that of outlier columns.
//
// Whole numbers are multiplied as floats, which hold every sum of 1,024 products exactly. 16 neighbours along k lie in the
// lanes, of a few rows of A and of B, so that a vector that was widened is used several times. What torch multiplies is too
// much for these kernels: more rows.
#include "int8.h"

namespace bnb {

// B[row, column] scaled back, rounded to T.
template <class T>
BNB_INLINE float weight_at(const signed char* B, const float* colStats, i64 row, i64 column, i64 K) {
  return to_float(from_float<T>(static_cast<float>(B[row * K + column]) * colStats[row] * kOneBy127));
}

// out = A[M, K] B[N, K]^T: in int32, or as kdequant_mm_int32 scales it, plus the product of outliers[M, C] with B's columns
// of these numbers. A sub-group, alone in its work-group, takes GROUP_ROWS rows of B, ROWS at a time, and all of A, TILE_M
// rows at a time; STEPS * 16 columns at once, each with sums of its own.
template <class T, int GROUP_ROWS, int ROWS, int TILE_M, int STEPS, int SUBG_SIZE>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kInt8ScaledMM(const signed char* A, const signed char* B, const float* rowStats, const float* colStats, T* out, const void* bias,
              i32 bias_type, const T* outliers, const i64* columns, i64 C, i64 M, i64 N, i64 K) {
  static_assert(SUBG_SIZE == 16 && ROWS * TILE_M <= 16 && GROUP_ROWS % ROWS == 0);
  constexpr i64 kExact = 16 * 1024;  // columns whose sums in each lane are exact
  const u32 lane = lane_id();
  const i64 group0 = group_id() * GROUP_ROWS;
  for (i64 tile = 0; tile < (M + TILE_M - 1) / TILE_M * (GROUP_ROWS / ROWS); tile++) {
    const i64 m0 = tile / (GROUP_ROWS / ROWS) * TILE_M, row0 = group0 + tile % (GROUP_ROWS / ROWS) * ROWS;
    if (row0 >= N) continue;
    const signed char *a[TILE_M], *b[ROWS];  // past the last row, the last row again: read, and not written
#pragma unroll
    for (int m = 0; m < TILE_M; m++) a[m] = A + (m0 + m < M ? m0 + m : M - 1) * K;
#pragma unroll
    for (int r = 0; r < ROWS; r++) b[r] = B + (row0 + r < N ? row0 + r : N - 1) * K;
    i32 sum[TILE_M][ROWS] = {};
    for (i64 begin = 0; begin < K; begin += kExact) {
      const i64 end = K - begin < kExact ? K : begin + kExact;
      float part[STEPS][TILE_M][ROWS] = {};
      const auto step = [&](int s, const auto& at) __attribute__((always_inline)) {
        float x[TILE_M];
#pragma unroll
        for (int m = 0; m < TILE_M; m++) x[m] = static_cast<float>(at(a[m]));
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const float w = static_cast<float>(at(b[r]));
#pragma unroll
          for (int m = 0; m < TILE_M; m++) part[s][m][r] = __builtin_fmaf(x[m], w, part[s][m][r]);
        }
      };
      i64 k = begin;
      for (; k + 16 * STEPS <= end; k += 16 * STEPS)
#pragma unroll
        for (int s = 0; s < STEPS; s++)
          step(s, [&](const signed char* from) __attribute__((always_inline)) { return (from + k + 16 * s)[lane]; });
      for (; k < end; k += 16)
        step(0, [&](const signed char* from)
                    __attribute__((always_inline)) { return k + lane < end ? from[k + lane] : static_cast<signed char>(0); });
#pragma unroll
      for (int m = 0; m < TILE_M; m++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
          for (int s = 0; s < STEPS; s++) sum[m][r] += static_cast<i32>(part[s][m][r]);
        }
    }
    i32 mine = 0;  // of lane m * ROWS + r
#pragma unroll
    for (int m = 0; m < TILE_M; m++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        i32 all = sum[m][r];
#pragma unroll
        for (u32 mask = 8; mask; mask /= 2) all += shuffle_xor(all, mask);
        mine = lane == static_cast<u32>(m * ROWS + r) ? all : mine;
      }
    const i64 m = m0 + lane / ROWS, n = row0 + lane % ROWS;
    if (lane < ROWS * TILE_M && m < M && n < N) {
      if constexpr (__is_same(T, i32)) {
        out[m * N + n] = mine;
      } else {
        float x = __builtin_fmaf(static_cast<float>(mine) * rowStats[m] * colStats[n], kMMDequant,
                                 bias_at(bias, bias_type, row0, lane % ROWS));
        for (i64 j = 0; j < C; j++)
          x = __builtin_fmaf(to_float(outliers[m * C + j]), weight_at<T>(B, colStats, n, columns[j], K), x);
        out[m * N + n] = from_float<T>(x);
      }
    }
  }
}

// out[M, N] = outliers[M, C] times B's columns of these numbers, scaled back: the addend of kdequant_mm_int32. A sub-group
// takes 64 rows of B, in its lanes, and TILE_M rows of A.
template <class T, int TILE_M, int CHUNK, int SUBG_SIZE>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kInt8OutlierProduct(const T* outliers, const signed char* B, const i64* columns, const float* colStats, T* out, i64 C, i64 M, i64 N,
                    i64 K) {
  static_assert(SUBG_SIZE == 16);
  constexpr int kVectors = 4, kRows = 16 * kVectors;
  static local_memory<float[CHUNK * kRows]> weights;
  static local_memory<float[TILE_M * kRows]> sums;
  float* const w = weights.data;
  const u32 lane = lane_id();
  const i64 across = (N + kRows - 1) / kRows, down = group_id() / across;
  const i64 row0 = (group_id() - down * across) * kRows, m0 = down * TILE_M;
  const int here = M - m0 < TILE_M ? static_cast<int>(M - m0) : TILE_M;

  for (i64 j0 = 0; j0 < C; j0 += CHUNK) {
    const int chunk = C - j0 < CHUNK ? static_cast<int>(C - j0) : CHUNK;
    for (int j = 0; j < chunk; j++) {
      const i64 column = columns[j0 + j];
#pragma unroll
      for (int v = 0; v < kVectors; v++) {
        const i64 row = row0 + 16 * v + lane;
        (w + j * kRows + 16 * v)[lane] = row < N ? weight_at<T>(B, colStats, row, column, K) : 0.0f;
      }
    }
    sub_group_barrier();
    for (int m = 0; m < here; m++) {
      float* const so_far = sums.data + m * kRows;
      float x[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; v++) x[v] = j0 ? (so_far + 16 * v)[lane] : 0.0f;
      const T* const a = outliers + (m0 + m) * C + j0;
      for (int j = 0; j < chunk; j++) {
        const float value = to_float(a[j]);
#pragma unroll
        for (int v = 0; v < kVectors; v++) x[v] = __builtin_fmaf(value, (w + j * kRows + 16 * v)[lane], x[v]);
      }
      if (j0 + chunk < C) {
#pragma unroll
        for (int v = 0; v < kVectors; v++) (so_far + 16 * v)[lane] = x[v];
      } else {
        T* const to = out + (m0 + m) * N + row0;
        if (row0 + kRows <= N) {
#pragma unroll
          for (int v = 0; v < kVectors; v++) (to + 16 * v)[lane] = from_float<T>(x[v]);
        } else {
#pragma unroll
          for (int v = 0; v < kVectors; v++)
            if (row0 + 16 * v + lane < N) (to + 16 * v)[lane] = from_float<T>(x[v]);
        }
      }
    }
    sub_group_barrier();
  }
}

}  // namespace bnb
