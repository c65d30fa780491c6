// The int32 product of two int8 matrices, scaled back: out = A * rowStats * colStats / 127² + (bias + addend), each product
// rounded to fp32 as CUDA's kernel does it, the last one fused with the sum, and the result once to T.
#include "int8.h"

namespace bnb {

// The bias (a value a column) has bias_type, or is null; the addend (a matrix) may be null. Tiles of HEIGHT rows, as in int8.h;
// with NUM_PER_TH > 1, A, addend and out are aligned to what a lane moves.
template <class T, int NUM_PER_TH, int STEPS, int HEIGHT, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kdequant_mm_int32(const i32* A, const float* rowStats, const float* colStats, T* out, const void* bias, i32 bias_type,
                  const T* addend, i64 rows, i64 cols) {
  using Grid = Tiles<SUBG_SIZE, NUM_PER_TH, STEPS>;
  const u32 lane = lane_id();
  const Grid tile(group_id() * (GROUP_SIZE / SUBG_SIZE) + sub_group_id(), rows, cols, HEIGHT);
  if (tile.empty()) return;
  float row_scale[HEIGHT];
#pragma unroll
  for (int r = 0; r < HEIGHT; r++) row_scale[r] = rowStats[tile.first_row + (r < tile.rows ? r : 0)];

  const auto step = [&](i64 col, i64 rows_here, auto full) __attribute__((always_inline)) {
    float scale[NUM_PER_TH], offset[NUM_PER_TH];
#pragma unroll
    for (int j = 0; j < NUM_PER_TH; j++) {
      scale[j] = (colStats + col)[lane * NUM_PER_TH + j];
      offset[j] = bias_at(bias, bias_type, col, lane * NUM_PER_TH + j);
    }
#pragma unroll
    for (int r = 0; r < HEIGHT; r++) {
      if (!full() && r >= rows_here) continue;
      const i64 at = (tile.first_row + r) * cols + col;
      const auto sums = reinterpret_cast<const pack<i32, NUM_PER_TH>*>(A + at)[lane];
      pack<T, NUM_PER_TH> more = {}, result;
      if (addend) more = reinterpret_cast<const pack<T, NUM_PER_TH>*>(addend + at)[lane];
#pragma unroll
      for (int j = 0; j < NUM_PER_TH; j++)
        result.v[j] = from_float<T>(
            __builtin_fmaf(static_cast<float>(sums.v[j]) * row_scale[r] * scale[j], kMMDequant, offset[j] + to_float(more.v[j])));
      reinterpret_cast<pack<T, NUM_PER_TH>*>(out + at)[lane] = result;
    }
  };
  if (tile.whole() && tile.rows == HEIGHT) {
    for (int s = 0; s < STEPS; s++) step(tile.first_col + s * Grid::kSpan, HEIGHT, [] { return true; });
  } else {
    for (int s = 0; s < STEPS; s++)
      if (tile.has(s, lane)) step(tile.first_col + s * Grid::kSpan, tile.rows, [] { return false; });
  }
}

}  // namespace bnb
