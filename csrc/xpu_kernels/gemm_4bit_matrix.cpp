// The product of a few rows of 16-bit activations with 4-bit weights on a GPU's matrix unit. See matrix_unit.h.
//
// A sub-group owns ROWS rows of B and TILE_M rows of A. It looks a weight up once for all of them (among the lanes, one
// shuffle), and multiplies table values: a block's scale is applied once to the fp32 sum of its products. SPLIT_K
// sub-groups share those rows and take chunks of STEPS steps of k in turn, so that a small matrix has loads enough in
// flight; their sums meet in local memory.
#include "dot_4bit.h"
#include "matrix_unit.h"

namespace bnb {

// A step is 8 * WORDS * kShare codes of a row; K, ldb are multiples of it and no block is smaller. lda is a multiple of 8,
// A is aligned to 8 elements, B to 4 * min(WORDS, 4) bytes, N * ldb is less than 2^34. The rest as in dot_4bit.
template <class T, int SUBG_SIZE, int SPLIT_K, int ROW_GROUPS, int ROWS, int STEPS, int TILE_M, int WORDS>
BNB_KERNEL_WITH(SUBG_SIZE * SPLIT_K * ROW_GROUPS, SUBG_SIZE, TILE_M > 8 ? 256 : 128)
kgemm_4bit_inference_matrix(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                            const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                            i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  using Unit = MatrixUnit<T, SUBG_SIZE>;
  constexpr int kShare = Unit::kShare, kSlots = Unit::kSlots, kSums = Unit::kSums, kLoads = Unit::kLoads;
  constexpr int kTiles = TILE_M / Unit::kTokens, kRowTiles = ROWS / Unit::kRows;
  constexpr int kStep = 8 * WORDS * kShare, kChunk = kStep * STEPS, kScales = (STEPS + kShare - 1) / kShare;
  constexpr int kLoadWords = WORDS < 4 ? WORDS : 4;
  static_assert(kShare == 1 || STEPS % kShare == 0);

  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id();
  const u32 table = high_and_low<T>(value_of_lane(datatype, data_type));
  const u32 group = group_id(), sub_group = uniform(local_id() / SUBG_SIZE);
  const u32 split = sub_group % SPLIT_K, row_group = sub_group / SPLIT_K;
  const u32 row_block = tiles_m == 1 ? group : uniform(group / static_cast<u32>(tiles_m));
  const i64 m0 = static_cast<i64>(group - row_block * static_cast<u32>(tiles_m)) * TILE_M;
  const i64 row0 = (static_cast<i64>(row_block) * ROW_GROUPS + row_group) * ROWS;

  // Past the last row, of A or of B, the last row again: read, and not written.
  const T* x_row[kTiles][kLoads];
#pragma unroll
  for (int t = 0; t < kTiles; t++) {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const i64 m = m0 + t * Unit::kTokens + Unit::loaded(lane, i);
      x_row[t][i] = A + (m < M ? m : M - 1) * lda;
    }
  }
  const u32 part = Unit::part(lane), x_offset = Unit::template offset<WORDS>(lane);
  u32 start8[kRowTiles][kSlots];  // of a row, in words of eight codes
#pragma unroll
  for (int r = 0; r < kRowTiles; r++) {
#pragma unroll
    for (int slot = 0; slot < kSlots; slot++) {
      const i64 row = row0 + r * Unit::kRows + Unit::row(lane, slot);
      start8[r][slot] = static_cast<u32>((row < N ? row : N - 1) * ldb >> 3);
    }
  }

  struct Chunk {
    u32 words[STEPS][kRowTiles][kSlots][WORDS];
    float scale[kRowTiles][kSlots][kScales];
  };
  // Past the end of k, the last step again: read, and not used.
  const u32 last_step = static_cast<u32>(K - kStep) >> 3, shift8 = shift - 3;
  const auto fetch = [&](Chunk& chunk, i64 k) __attribute__((always_inline)) {
    const u32 k8 = k >> 3;
#pragma unroll
    for (int r = 0; r < kRowTiles; r++) {
#pragma unroll
      for (int slot = 0; slot < kSlots; slot++) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
          const u32 at = k8 + s * (kStep / 8);
          const u32 word = start8[r][slot] + (at < last_step ? at : last_step) + part * WORDS;
          const u32* from = reinterpret_cast<const u32*>(B) + word;
#pragma unroll
          for (int w = 0; w < WORDS; w += kLoadWords) {
            const auto loaded = *reinterpret_cast<const pack<u32, kLoadWords>*>(from + w);
#pragma unroll
            for (int i = 0; i < kLoadWords; i++) chunk.words[s][r][slot][w + i] = loaded.v[i];
          }
        }
#pragma unroll
        for (int s = 0; s < kScales; s++) {
          const u32 at = k8 + (s * kShare + part) * (kStep / 8);
          chunk.scale[r][slot][s] = statistics.scale((start8[r][slot] + (at < last_step ? at : last_step)) >> shift8);
        }
      }
    }
  };

  // High and low parts apart to the end: where an activation is infinite their sum would be NaN.
  float high[kRowTiles][kTiles][kSums] = {}, low[kRowTiles][kTiles][kSums] = {};
  i64 k = split * kChunk;
  Chunk chunk;
  if (k < K) fetch(chunk, k);
  for (; k < K; k += kChunk * SPLIT_K) {
    Chunk next;
    if (k + kChunk * SPLIT_K < K) fetch(next, k + kChunk * SPLIT_K);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      const i64 at = k + s * kStep;
      if (at >= K) continue;
      pack<T, Unit::template kHeld<WORDS>> x[kTiles][kLoads];
#pragma unroll
      for (int t = 0; t < kTiles; t++) {
#pragma unroll
        for (int i = 0; i < kLoads; i++)
          x[t][i] = *reinterpret_cast<const pack<T, Unit::template kHeld<WORDS>>*>(x_row[t][i] + at + x_offset);
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; r++) {
        float high_part[kTiles][kSums] = {}, low_part[kTiles][kSums] = {};
#pragma unroll
        for (int i = 0; i < Unit::template kMultiplications<WORDS>; i++) {
          const auto weights = Unit::template weights<WORDS>(table, chunk.words[s][r], i);
#pragma unroll
          for (int t = 0; t < kTiles; t++) {
            Unit::multiply(high_part[t], weights.high, x[t], i);
            Unit::multiply(low_part[t], weights.low, x[t], i);
          }
        }
#pragma unroll
        for (int slot = 0; slot < kSlots; slot++) {
          float scale = chunk.scale[r][slot][s / kShare];
          if constexpr (kShare > 1) scale = shuffle(scale, (lane & ~(kShare - 1u)) + s % kShare);
#pragma unroll
          for (int t = 0; t < kTiles; t++) {
#pragma unroll
            for (int c = slot * (kSums / kSlots); c < (slot + 1) * (kSums / kSlots); c++) {
              high[r][t][c] += high_part[t][c] * scale;
              low[r][t][c] += low_part[t][c] * scale;
            }
          }
        }
      }
    }
    chunk = next;
  }

  constexpr int kTileSums = kSums * SUBG_SIZE, kGroupSums = kRowTiles * kTiles * kTileSums;
  static local_memory<float[ROW_GROUPS * SPLIT_K * kGroupSums]> all_sums;
  float* sums = all_sums.data + row_group * SPLIT_K * kGroupSums;
#pragma unroll
  for (int r = 0; r < kRowTiles; r++) {
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
#pragma unroll
      for (int c = 0; c < kSums; c++) {
        const float h = high[r][t][c];
        sums[split * kGroupSums + (r * kTiles + t) * kTileSums + c * SUBG_SIZE + lane] =
            __builtin_fabsf(h) < __builtin_inff() ? h + low[r][t][c] : h;
      }
    }
  }
  barrier();
  for (u32 e = split * SUBG_SIZE + lane; e < kGroupSums; e += SPLIT_K * SUBG_SIZE) {
    const u32 row_in_tile = e % Unit::kRows, token = e / Unit::kRows % Unit::kTokens, tile = e / kTileSums;
    const u32 at = tile * kTileSums + Unit::at(row_in_tile, token);
    float total = 0;
#pragma unroll
    for (int j = 0; j < SPLIT_K; j++) total += sums[j * kGroupSums + at];
    const i64 row = row0 + tile / kTiles * Unit::kRows + row_in_tile, m = m0 + tile % kTiles * Unit::kTokens + token;
    if (row < N && m < M) out[m * ldc + row] = from_float<T>(bias ? total + to_float(bias[row]) : total);
  }
}

}  // namespace bnb
