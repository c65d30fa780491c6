// LLM.int8() on CPU devices: the product of few rows, exact or scaled back, and that of outlier columns.
//
// A work-group of the product is one work-item that holds whole vectors: neighbours along k of a few rows of A and of B, so that
// what was loaded is used several times. What torch multiplies is too much for these kernels: more rows.
#include "int8.h"
#include "vectors.h"

namespace bnb {

using i32x8 = i32 __attribute__((ext_vector_type(8)));
using i32x16 = x16<i32>;
using u32x16 = x16<u32>;

BNB_INLINE i32 sum_of(i32x8 v) {
  const auto four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  return four[0] + four[1] + (four[2] + four[3]);
}

// Products of rows of A with rows of B, kColumns at a time, on any CPU.
template <int TILE_M, int ROWS>
struct PlainProducts {
  static constexpr int kColumns = 16;
  using Values = x16<signed char>;
  i32x8 sum[TILE_M][ROWS] = {};

  static BNB_INLINE Values load(const signed char* p) { return vector_at<Values>(p); }
  static BNB_INLINE Values load(const signed char* p, i64 count) { return first_of(p, count); }

  BNB_INLINE void add(const Values (&a)[TILE_M], const Values (&b)[ROWS]) {
#pragma unroll
    for (int m = 0; m < TILE_M; m++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const i32x16 products = __builtin_convertvector(a[m], i32x16) * __builtin_convertvector(b[r], i32x16);
        sum[m][r] += __builtin_shufflevector(products, products, 0, 2, 4, 6, 8, 10, 12, 14) +
                     __builtin_shufflevector(products, products, 1, 3, 5, 7, 9, 11, 13, 15);
      }
  }
  BNB_INLINE i32 at(int m, int r) const { return sum_of(sum[m][r]); }
};

// The same by AVX512-VNNI's dot product of four bytes, whose one operand is unsigned: B, with 128 added, which the sums of A take
// back.
template <int TILE_M, int ROWS>
struct VnniProducts {
  static constexpr int kColumns = 64;
  using Values = u32x16;
  i32x16 sum[TILE_M][ROWS] = {}, of_a[TILE_M] = {};

  // SPIR-V drops that an operand is read and written ("+v"): hence the move, which no unit has to do.
  static BNB_INLINE void add_products(i32x16& sum, u32x16 unsigned_bytes, u32x16 bytes) {
    i32x16 result;
    __asm__("vmovaps %3, %0\n\tvpdpbusd %2, %1, %0" : "=&v"(result) : "v"(unsigned_bytes), "v"(bytes), "v"(sum));
    sum = result;
  }

  static BNB_INLINE Values load(const signed char* p) { return vector_at<Values>(p); }
  static BNB_INLINE Values load(const signed char* p, i64 count) {
    if (count >= kColumns) return load(p);
    signed char bytes[kColumns] = {};
    for (int i = 0; i < count; i++) bytes[i] = p[i];
    return load(bytes);
  }

  BNB_INLINE void add(const Values (&a)[TILE_M], const Values (&b)[ROWS]) {
#pragma unroll
    for (int m = 0; m < TILE_M; m++) add_products(of_a[m], u32x16(0x01010101), a[m]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const u32x16 positive = b[r] ^ 0x80808080u;
#pragma unroll
      for (int m = 0; m < TILE_M; m++) add_products(sum[m][r], positive, a[m]);
    }
  }
  BNB_INLINE i32 at(int m, int r) const {
    const i32x16 v = sum[m][r] - 128 * of_a[m];
    return sum_of(v.lo + v.hi);
  }
};

// B[row, column] scaled back, rounded to T.
template <class T>
BNB_INLINE float weight_at(const signed char* B, const float* colStats, i64 row, i64 column, i64 K) {
  return to_float(from_float<T>(static_cast<float>(B[row * K + column]) * colStats[row] * kOneBy127));
}

// out = A[M, K] B[N, K]^T: in int32, or as kdequant_mm_int32 scales it, plus the product of outliers[M, C] with B's columns
// of these numbers. A work-item takes GROUP_ROWS rows of B, ROWS at a time, and all of A, TILE_M rows at a time; of columns,
// STEPS vectors at a time, each with sums of its own.
template <class T, template <int, int> class Products, int GROUP_ROWS, int ROWS, int TILE_M, int STEPS>
BNB_KERNEL_OF_ONE
kInt8ScaledMM(const signed char* A, const signed char* B, const float* rowStats, const float* colStats, T* out, const void* bias,
              i32 bias_type, const T* outliers, const i64* columns, i64 C, i64 M, i64 N, i64 K) {
  static_assert(GROUP_ROWS % ROWS == 0);
  using Sums = Products<TILE_M, ROWS>;
  constexpr int kColumns = Sums::kColumns;
  const i64 first = group_id() * GROUP_ROWS, last = first + GROUP_ROWS < N ? first + GROUP_ROWS : N;
  for (i64 n0 = first; n0 < last; n0 += ROWS) {
    for (i64 m0 = 0; m0 < M; m0 += TILE_M) {
      // Past the last row, the last row again: read, and not written.
      const auto row = [&](int m) __attribute__((always_inline)) { return m0 + m < M ? m0 + m : M - 1; };
      const auto column = [&](int r) __attribute__((always_inline)) { return n0 + r < N ? n0 + r : N - 1; };
      const signed char *a[TILE_M], *b[ROWS];
#pragma unroll
      for (int m = 0; m < TILE_M; m++) a[m] = A + row(m) * K;
#pragma unroll
      for (int r = 0; r < ROWS; r++) b[r] = B + column(r) * K;
      Sums sums[STEPS];
      const auto add = [&](int s, const auto& values_at) __attribute__((always_inline)) {
        typename Sums::Values x[TILE_M], w[ROWS];
#pragma unroll
        for (int m = 0; m < TILE_M; m++) x[m] = values_at(a[m]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) w[r] = values_at(b[r]);
        sums[s].add(x, w);
      };
      i64 k = 0;
      for (; k + STEPS * kColumns <= K; k += STEPS * kColumns)
#pragma unroll
        for (int s = 0; s < STEPS; s++)
          add(s, [&](const signed char* from) __attribute__((always_inline)) { return Sums::load(from + k + s * kColumns); });
      for (; k < K; k += kColumns)
        add(0, [&](const signed char* from) __attribute__((always_inline)) { return Sums::load(from + k, K - k); });
      const auto at = [&](int m, int r) __attribute__((always_inline)) {
        i32 product = 0;
#pragma unroll
        for (int s = 0; s < STEPS; s++) product += sums[s].at(m, r);
        return product;
      };
      const auto write = [&](const auto& value_at) __attribute__((always_inline)) {
#pragma unroll
        for (int m = 0; m < TILE_M; m++)
#pragma unroll
          for (int r = 0; r < ROWS; r++)
            if (m0 + m < M && n0 + r < N) out[(m0 + m) * N + n0 + r] = value_at(m, r);
      };
      if constexpr (__is_same(T, i32)) {
        write(at);
      } else {
        float x[TILE_M][ROWS];
#pragma unroll
        for (int m = 0; m < TILE_M; m++) {
          const float row_scale = rowStats[row(m)];
#pragma unroll
          for (int r = 0; r < ROWS; r++)
            x[m][r] = __builtin_fmaf(static_cast<float>(at(m, r)) * row_scale * colStats[column(r)], kMMDequant,
                                     bias_at(bias, bias_type, column(r), 0));
        }
        for (i64 j = 0; j < C; j++) {
          float w[ROWS];
#pragma unroll
          for (int r = 0; r < ROWS; r++) w[r] = weight_at<T>(B, colStats, column(r), columns[j], K);
#pragma unroll
          for (int m = 0; m < TILE_M; m++) {
            const float value = to_float(outliers[row(m) * C + j]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) x[m][r] = __builtin_fmaf(value, w[r], x[m][r]);
          }
        }
        write([&](int m, int r) __attribute__((always_inline)) { return from_float<T>(x[m][r]); });
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
