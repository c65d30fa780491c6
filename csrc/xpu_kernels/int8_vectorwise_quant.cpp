// Quantisation to int8 by rows and by columns, with outliers left out: LLM.int8().
//
// Rows: rowStats[r] = max |A[r, c]|, out[r, c] = round(A[r, c] * (127 / rowStats[r])). An outlier, |A[r, c]| >= threshold,
// counts for nothing, becomes 0, and marks its column; the other rows of such a column are zeroed afterwards, once all
// columns are known. Columns: out[r, c] = round(T(A[r, c] * 127) / colStats[c]). NaN becomes 0.
#include "int8.h"

namespace bnb {

template <class T>
BNB_INLINE u8 code_of_row(float x, float scale, bool outlier) {
  const float scaled = x * scale;
  if constexpr (__is_same(T, float)) outlier = outlier || scaled != scaled;  // its NaN may have low bits
  return outlier ? 0 : nearest_int8(scaled);
}

// 127 / top, as CUDA has it: zero from 2^126 on, infinity for a denormal.
BNB_INLINE float scale_of_row(float top) { return fast_reciprocal(top) * 127.0f; }

// `outliers` has a byte for each column, zero before; it is touched with SPARSE_DECOMP alone.
//   HELD > 0   for GPUs: a work-group does a row; a lane takes NUM_PER_TH neighbours at once, keeps the first HELD of
//              them in registers and reads the rest again. With NUM_PER_TH > 1, cols is a multiple of it, A and out are
//              aligned to what a lane moves;
//   HELD == 0  for CPU devices: a sub-group does a row, which its cache holds for the second pass. NUM_PER_TH is how many
//              steps are taken at once.
template <class T, int SPARSE_DECOMP, int NUM_PER_TH, int HELD, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kInt8VectorQuant(const T* A, u8* out, float* rowStats, u8* outliers, float threshold, i64 rows, i64 cols) {
  constexpr int kSubGroups = GROUP_SIZE / SUBG_SIZE;
  const u32 lane = lane_id();
  if constexpr (HELD > 0) {
    constexpr int kSpan = GROUP_SIZE * NUM_PER_TH;
    using Values = pack<T, NUM_PER_TH>;
    using Codes = pack<u8, NUM_PER_TH>;
    const u32 id = local_id();
    const i64 row = group_id();
    const T* const x = A + row * cols;
    u8* const codes = out + row * cols;
    // Columns of this lane from a step on that are inside the row; uniform arithmetic is in 64 bits, a lane's in 32.
    const auto inside = [&](i64 base) __attribute__((always_inline)) {
      const i64 left = cols - base;
      return id * NUM_PER_TH < static_cast<u32>(left < kSpan ? left : kSpan);
    };
    float top = 0.0f;
    // Outliers are few: only a lane that has one looks for it. It becomes 0 in `values`.
    const auto look = [&](Values& values, i64 base) __attribute__((always_inline)) {
      float peak = 0.0f;
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++) peak = larger(magnitude(to_float(values.v[j])), peak);
      if (SPARSE_DECOMP && peak >= threshold) {
        u8* const mark = outliers + base + id * NUM_PER_TH;
        peak = 0.0f;
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) {
          const float size = magnitude(to_float(values.v[j]));
          if (size >= threshold) {
            values.v[j] = T{};
            if (!mark[j]) mark[j] = 1;  // other rows have the same outliers: reads share a cache, writes queue up
          } else {
            peak = larger(size, peak);
          }
        }
      }
      top = larger(peak, top);
    };
    Values held[HELD];
#pragma unroll
    for (int h = 0; h < HELD; h++) {
      const i64 base = static_cast<i64>(h) * kSpan;
      if (base < cols && inside(base)) held[h] = reinterpret_cast<const Values*>(x + base)[id];
    }
#pragma unroll
    for (int h = 0; h < HELD; h++) {
      const i64 base = static_cast<i64>(h) * kSpan;
      if (base < cols && inside(base)) look(held[h], base);
    }
    for (i64 base = static_cast<i64>(HELD) * kSpan; base < cols; base += kSpan)
      if (inside(base)) {
        Values values = reinterpret_cast<const Values*>(x + base)[id];
        look(values, base);
      }

    static local_memory<float[kSubGroups]> tops;
    top = sub_group_max<SUBG_SIZE>(top);
    if (lane == 0) tops.data[sub_group_id()] = top;
    barrier();
#pragma unroll
    for (int s = 0; s < kSubGroups; s++) top = larger(tops.data[s], top);
    if (id == 0) rowStats[row] = top;
    const float scale = scale_of_row(top);

    const auto write = [&](const Values& values, i64 base, bool sparse) __attribute__((always_inline)) {
      Codes result;
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++) {
        const float value = to_float(values.v[j]);
        result.v[j] = code_of_row<T>(value, scale, sparse && magnitude(value) >= threshold);
      }
      reinterpret_cast<Codes*>(codes + base)[id] = result;
    };
#pragma unroll
    for (int h = 0; h < HELD; h++) {
      const i64 base = static_cast<i64>(h) * kSpan;
      if (base < cols && inside(base)) write(held[h], base, false);
    }
    for (i64 base = static_cast<i64>(HELD) * kSpan; base < cols; base += kSpan)
      if (inside(base)) write(reinterpret_cast<const Values*>(x + base)[id], base, SPARSE_DECOMP);
  } else {
    constexpr int kSpan = NUM_PER_TH * SUBG_SIZE;
    const i64 row = group_id() * kSubGroups + sub_group_id();
    if (row >= rows) return;
    const T* const x = A + row * cols;
    u8* const codes = out + row * cols;
    const i64 whole = cols / kSpan * kSpan;
    float tops[NUM_PER_TH] = {}, peaks[NUM_PER_TH] = {};  // without outliers, with them
    for (i64 c = 0; c < whole; c += kSpan) {
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++) {
        const float size = magnitude(to_float((x + c + j * SUBG_SIZE)[lane]));
        if (SPARSE_DECOMP) {
          peaks[j] = larger(size, peaks[j]);
          tops[j] = larger(size < threshold ? size : 0.0f, tops[j]);
        } else {
          tops[j] = larger(size, tops[j]);
        }
      }
    }
    for (i64 c = whole; c < cols; c += SUBG_SIZE) {
      if (lane < static_cast<u64>(cols - c)) {
        const float size = magnitude(to_float((x + c)[lane]));
        peaks[0] = larger(size, peaks[0]);
        tops[0] = larger(!SPARSE_DECOMP || size < threshold ? size : 0.0f, tops[0]);
      }
    }
    float top = tops[0], peak = peaks[0];
#pragma unroll
    for (int j = 1; j < NUM_PER_TH; j++) top = larger(tops[j], top), peak = larger(peaks[j], peak);
    top = sub_group_max<SUBG_SIZE>(top);
    if (lane == 0) rowStats[row] = top;
    const float scale = scale_of_row(top);
    const bool sparse = SPARSE_DECOMP && sub_group_any(peak >= threshold);
    // Outliers are few: most steps of a row that has some go without masks.
    const auto masked = [&](i64 c) __attribute__((always_inline)) {
      const float value = to_float((x + c)[lane]);
      const bool outlier = SPARSE_DECOMP && magnitude(value) >= threshold;
      (codes + c)[lane] = code_of_row<T>(value, scale, outlier);
      if (outlier) (outliers + c)[lane] = 1;
    };
    for (i64 c = 0; c < whole; c += kSpan) {
      if (sparse) {
        float most = 0.0f;
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) most = larger(magnitude(to_float((x + c + j * SUBG_SIZE)[lane])), most);
        if (sub_group_any(most >= threshold)) {
          for (int j = 0; j < NUM_PER_TH; j++) masked(c + j * SUBG_SIZE);
          continue;
        }
      }
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++)
        (codes + c + j * SUBG_SIZE)[lane] = code_of_row<T>(to_float((x + c + j * SUBG_SIZE)[lane]), scale, false);
    }
    for (i64 c = whole; c < cols; c += SUBG_SIZE)
      if (lane < static_cast<u64>(cols - c)) masked(c);
  }
}

// out[r, columns[i]] = 0 for every row, n columns of them. A sub-group does a row.
template <int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kZeroColumns(u8* out, const i64* columns, i64 n, i64 rows, i64 cols) {
  const u32 lane = lane_id();
  const i64 row = group_id() * (GROUP_SIZE / SUBG_SIZE) + sub_group_id();
  if (row >= rows) return;
  u8* const codes = out + row * cols;
  for (i64 i = 0; i < n; i += SUBG_SIZE)
    if (lane < static_cast<u64>(n - i)) codes[(columns + i)[lane]] = 0;
}

// out[i, c] = max |A[r, c]| over the i-th `height` rows, outliers (>= threshold, if that is not 0) left out. NaN is the
// maximum wherever there is one. Tiles as in int8.h.
//   SHARED == 0  a tile is a sub-group's;
//   SHARED == 1  for GPUs: a tile is a work-group's, whose sub-groups take the rows in turns, some of them at once.
template <class T, int SHARED, int NUM_PER_TH, int STEPS, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kColumnStats(const T* A, float* out, float threshold, i64 rows, i64 cols, i64 height) {
  using Grid = Tiles<SUBG_SIZE, NUM_PER_TH, STEPS>;
  constexpr int kSubGroups = GROUP_SIZE / SUBG_SIZE;
  const u32 lane = lane_id();
  const Grid tile(SHARED ? group_id() : group_id() * kSubGroups + sub_group_id(), rows, cols, height);
  if (tile.empty()) return;
  const bool all = !(threshold > 0.0f);
  const float limit = all ? __builtin_inff() : threshold;
  // Magnitudes are compared as bits: NaN is above infinity.
  u32 tops[STEPS][NUM_PER_TH] = {};
  const auto look = [&](const pack<T, NUM_PER_TH>& values, u32(&top)[NUM_PER_TH]) __attribute__((always_inline)) {
#pragma unroll
    for (int j = 0; j < NUM_PER_TH; j++) {
      const float size = magnitude(to_float(values.v[j]));
      const u32 bits = !all && size >= limit ? 0 : bits_as<u32>(size);
      top[j] = bits > top[j] ? bits : top[j];
    }
  };
  const T* const x = A + tile.first_row * cols + tile.first_col;
  float* const stats = out + tile.first_row / height * cols + tile.first_col;
  if constexpr (SHARED) {
    static_assert(STEPS == 1);
    constexpr int kAtOnce = 8;
    using Values = pack<T, NUM_PER_TH>;
    if (tile.has(0, lane)) {
      for (i64 r = sub_group_id(); r < tile.rows; r += kAtOnce * kSubGroups) {
        Values values[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) {
          const i64 row = r + i * kSubGroups;  // behind the end, the last row again: it is no harm to a maximum
          values[i] = reinterpret_cast<const Values*>(x + (row < tile.rows ? row : tile.rows - 1) * cols)[lane];
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) look(values[i], tops[0]);
      }
    }
    static local_memory<u32[kSubGroups][NUM_PER_TH][SUBG_SIZE]> shared;
#pragma unroll
    for (int j = 0; j < NUM_PER_TH; j++) shared.data[sub_group_id()][j][lane] = tops[0][j];
    barrier();
    for (u32 c = local_id(); c < Grid::kSpan; c += GROUP_SIZE) {
      u32 top = 0;
#pragma unroll
      for (int s = 0; s < kSubGroups; s++) {
        const u32 other = shared.data[s][c % NUM_PER_TH][c / NUM_PER_TH];
        top = other > top ? other : top;
      }
      if (c < tile.left) stats[c] = bits_as<float>(top);
    }
  } else {
    const auto run = [&](auto guarded) __attribute__((always_inline)) {
      for (i64 r = 0; r < tile.rows; r++) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
          if (guarded() && !tile.has(s, lane)) continue;
          look(reinterpret_cast<const pack<T, NUM_PER_TH>*>(x + r * cols + s * Grid::kSpan)[lane], tops[s]);
        }
      }
    };
    if (tile.whole())
      run([] { return false; });
    else
      run([] { return true; });
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      if (!tile.has(s, lane)) continue;
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++) (stats + s * Grid::kSpan)[lane * NUM_PER_TH + j] = bits_as<float>(tops[s][j]);
    }
  }
}

// out[r, c] = round(T(A[r, c] * 127) / colStats[c]), 0 for outliers (>= threshold, if that is not 0). A product that T
// cannot hold is not rounded. Tiles as in int8.h.
template <class T, int NUM_PER_TH, int STEPS, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kInt8ColumnQuant(const T* A, const float* colStats, u8* out, float threshold, i64 rows, i64 cols, i64 height) {
  using Grid = Tiles<SUBG_SIZE, NUM_PER_TH, STEPS>;
  const u32 lane = lane_id();
  const Grid tile(group_id() * (GROUP_SIZE / SUBG_SIZE) + sub_group_id(), rows, cols, height);
  if (tile.empty()) return;
  const bool all = !(threshold > 0.0f);
  // A column far from 1 is scaled together with its maximum, so that reciprocal and remainder stay in range.
  float divisor[STEPS][NUM_PER_TH], reciprocal[STEPS][NUM_PER_TH], factor[STEPS][NUM_PER_TH];
  bool near = true;
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
#pragma unroll
    for (int j = 0; j < NUM_PER_TH; j++) {
      const float top = tile.has(s, lane) ? (colStats + tile.first_col + s * Grid::kSpan)[lane * NUM_PER_TH + j] : 1.0f;
      factor[s][j] = top < 0x1p-60f ? 0x1p60f : top > 0x1p60f ? 0x1p-60f : 1.0f;
      near = near && factor[s][j] == 1.0f;
      divisor[s][j] = top * factor[s][j];
      // Rounded to nearest. A zero or infinite maximum gives NaN, and so codes of 0.
      const float r = 1.0f / divisor[s][j];
      reciprocal[s][j] = __builtin_fmaf(__builtin_fmaf(-divisor[s][j], r, 1.0f), r, r);
    }
  }
  const auto run = [&](auto guarded, auto plain) __attribute__((always_inline)) {
#pragma unroll(STEPS == 1 ? 4 : 2)
    for (i64 r = 0; r < tile.rows; r++) {
      const i64 at = (tile.first_row + r) * cols + tile.first_col;
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        if (guarded() && !tile.has(s, lane)) continue;
        const auto values = reinterpret_cast<const pack<T, NUM_PER_TH>*>(A + at + s * Grid::kSpan)[lane];
        pack<u8, NUM_PER_TH> codes;
#pragma unroll
        for (int j = 0; j < NUM_PER_TH; j++) {
          const float value = to_float(values.v[j]);
          const float product = (plain() ? value : value * factor[s][j]) * 127.0f;
          const float rounded = to_float(from_float<T>(product));
          const float scaled = magnitude(rounded) < __builtin_inff() ? rounded : product;
          const float code = divide(scaled, divisor[s][j], reciprocal[s][j]);
          codes.v[j] = code != code || (!plain() && !all && magnitude(value) >= threshold) ? 0 : nearest_int8(code);
        }
        reinterpret_cast<pack<u8, NUM_PER_TH>*>(out + at + s * Grid::kSpan)[lane] = codes;
      }
    }
  };
  constexpr bool kGpu = STEPS == 1;  // worth a copy of the loop
  if (kGpu && tile.whole() && all && !sub_group_any(!near))
    run([] { return false; }, [] { return true; });
  else if (!kGpu && tile.whole())
    run([] { return false; }, [] { return false; });
  else
    run([] { return true; }, [] { return false; });
}

}  // namespace bnb
