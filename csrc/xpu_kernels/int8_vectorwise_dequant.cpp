// Rows of int8 scaled back: out[r, c] = A[r, c] * stats[r] * (1 / 127), each product rounded to fp32, the result to T.
#include "int8.h"

namespace bnb {

// stats of row r is stats[r * stride]: a stride of 0 is one value for all rows. Tiles of HEIGHT rows, as in int8.h; with
// NUM_PER_TH > 1, A and out are aligned to what a lane moves.
template <class T, int NUM_PER_TH, int STEPS, int HEIGHT, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kInt8VectorDequant(const signed char* A, const float* stats, T* out, i64 stride, i64 rows, i64 cols) {
  using Grid = Tiles<SUBG_SIZE, NUM_PER_TH, STEPS>;
  const u32 lane = lane_id();
  const Grid tile(group_id() * (GROUP_SIZE / SUBG_SIZE) + sub_group_id(), rows, cols, HEIGHT);
  if (tile.empty()) return;
  const auto step = [&](i64 at, float scale) __attribute__((always_inline)) {
    const auto codes = reinterpret_cast<const pack<signed char, NUM_PER_TH>*>(A + at)[lane];
    pack<T, NUM_PER_TH> result;
#pragma unroll
    for (int j = 0; j < NUM_PER_TH; j++) result.v[j] = from_float<T>(static_cast<float>(codes.v[j]) * scale * kOneBy127);
    reinterpret_cast<pack<T, NUM_PER_TH>*>(out + at)[lane] = result;
  };
  for (i64 r = 0; r < tile.rows; r++) {
    const float scale = stats[(tile.first_row + r) * stride];
    const i64 at = (tile.first_row + r) * cols + tile.first_col;
    if (tile.whole()) {
#pragma unroll
      for (int s = 0; s < STEPS; s++) step(at + s * Grid::kSpan, scale);
    } else {
      for (int s = 0; s < STEPS; s++)
        if (tile.has(s, lane)) step(at + s * Grid::kSpan, scale);
    }
  }
}

}  // namespace bnb
