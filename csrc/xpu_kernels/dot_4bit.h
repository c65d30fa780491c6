// The inner product of activations with 4-bit weights, for kgemv_4bit_inference and kgemm_4bit_inference.
//
// out[m, n] = sum over k of A[m, k] * datatype[B[n, k]] * scale of block (n * ldb + k) / blocksize (+ bias[n])
//
// A sub-group owns ROWS rows of B and TILE_M rows of A and splits k among its lanes, so that an activation is loaded and
// widened once for all rows of B, and a weight looked up once for all rows of A. The 16 values of the 4-bit type live in
// the lanes (one shuffle a look-up). Products and sums are fp32. B is flat: blocks may straddle its rows.
#pragma once
#include "device.h"

namespace bnb {

// Statistics of the blocks; if absmax_8bit is not null they are themselves quantised in blocks of 256:
// scale = absmax_code[absmax_8bit[block]] * absmax[block / 256] + *absmax_offset.
struct Statistics {
  const float* absmax;
  const u8* absmax_8bit;
  const float* absmax_code;
  const float* absmax_offset;

  BNB_INLINE float scale(i64 block) const {
#pragma clang fp contract(off)  // two roundings, as where the statistics are dequantised first
    if (!absmax_8bit) return absmax[block];
    return absmax_code[absmax_8bit[block]] * absmax[block >> 8] + *absmax_offset;
  }
};

// The value of the 4-bit type's code `lane & 15`: of a table of 16, or of data_type's where that is null.
BNB_INLINE float value_of_lane(const float* datatype, i32 data_type) {
  const u32 code = lane_id() & 15;
  return datatype ? datatype[code] : data_type == NF4 ? kNF4[code] : kFP4[code];
}

// Two neighbouring activations a lane, 2 * 16 a sub-group of 16.
BNB_INLINE void load_pair(const half* p, u32 lane, float& x0, float& x1) {
  const u32 both = reinterpret_cast<const u32*>(p)[lane];
  x0 = to_float(bits_as<half>(static_cast<u16>(both)));
  x1 = to_float(bits_as<half>(static_cast<u16>(both >> 16)));
}
BNB_INLINE void load_pair(const bfloat16* p, u32 lane, float& x0, float& x1) {
  const u32 both = reinterpret_cast<const u32*>(p)[lane];
  x0 = bits_as<float>(both << 16);
  x1 = bits_as<float>(both & 0xffff0000u);
}
BNB_INLINE void load_pair(const float* p, u32 lane, float& x0, float& x1) {
  // Two unit-stride loads and shuffles: the CPU's vectoriser would make a gather of a load with stride two.
  const float low = p[lane], high = p[16 + lane];
  const u32 from = 2 * lane & 15;
  const float low0 = shuffle(low, from), high0 = shuffle(high, from);
  const float low1 = shuffle(low, from + 1), high1 = shuffle(high, from + 1);
  x0 = lane < 8 ? low0 : high0;
  x1 = lane < 8 ? low1 : high1;
}

// Eight neighbouring activations a lane.
template <class T>
BNB_INLINE void load_eight(const T* p, u32 lane, float (&x)[8]) {
  const auto a = reinterpret_cast<const pack<T, 8>*>(p)[lane];
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = to_float(a.v[j]);
}
BNB_INLINE void load_eight(const bfloat16* p, u32 lane, float (&x)[8]) {
  const auto words = reinterpret_cast<const pack<u32, 4>*>(p)[lane];  // as words: an instruction a value, not two
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    x[j] = bits_as<float>(words.v[j / 2] << 16);
    x[j + 1] = bits_as<float>(words.v[j / 2] & 0xffff0000u);
  }
}

// A compile-time bool as a value, for lambdas.
template <bool VALUE>
struct constant {
  constexpr operator bool() const { return VALUE; }
};

// NUM_PER_THREAD is the number of weights that a lane takes at once:
//   8  for GPUs: K, lda and ldb multiples of 8 (ldb of 32 at blocksize 32), N * ldb less than 2^34, A aligned to 8
//      elements, B to 4 bytes;
//   2  for CPU devices (SUBG_SIZE 16): K and ldb multiples of 32, A aligned to 2 elements; a step's 32 weights share a scale;
//   1  anything.
// `datatype` is a table of 16, or null for that of data_type. A's rows lie lda elements apart, B's ldb codes, out's ldc
// elements. Work-group g does tile g % tiles_m of A's rows and group g / tiles_m of B's.
template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int ROWS, int STEPS, int TILE_M>
BNB_INLINE void dot_4bit(i64 M, i64 N, i64 K, const T* A, const u8* B, const Statistics statistics, const T* bias,
                         const float* datatype, i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  constexpr int kSpan = SUBG_SIZE * NUM_PER_THREAD;
  constexpr int kRowsPerGroup = GROUP_SIZE / SUBG_SIZE * ROWS;
  const u32 lane = lane_id();
  const float in_lane = value_of_lane(datatype, data_type);
  // The same in all lanes. A GPU's compiler has to be told so: a division or a sub-group's id would otherwise spread a
  // vector of 64-bit numbers over the whole kernel. A CPU's finds out, unless it is told by a shuffle.
  i64 row_group = group_id(), sub_group = sub_group_id();
  if constexpr (NUM_PER_THREAD == 2) {
    if (tiles_m != 1) row_group /= tiles_m;
  } else {
    const u32 group = group_id();
    if (tiles_m != 1) row_group = uniform(group / static_cast<u32>(tiles_m));
    sub_group = uniform(local_id() / SUBG_SIZE);
  }
  const i64 m = (group_id() - row_group * tiles_m) * TILE_M;
  const i64 row = row_group * kRowsPerGroup + sub_group * ROWS;
  if (row >= N) return;

  // Past the last row, of A or of B, the last row again: read, and not written.
  const T* x_row[TILE_M];
#pragma unroll
  for (int i = 0; i < TILE_M; i++) x_row[i] = A + (m + i < M ? m + i : M - 1) * lda;
  i64 start[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) start[r] = (row + r < N ? row + r : N - 1) * ldb;
  float sum[ROWS][TILE_M] = {};

  if constexpr (NUM_PER_THREAD == 8) {
    static_assert(8 * STEPS <= 32, "each lane holds one scale of a chunk");
    // Codes are counted in words of eight, in 32 bits (N * ldb is less than 2^34). Blocks longer than a chunk are taken as several,
    // so that which lane holds the scale of a lane's word is the same for every chunk.
    constexpr u32 kChunk = SUBG_SIZE * STEPS;
    constexpr bool kBlockRead = SUBG_SIZE == 16 && STEPS > 1;
    static_assert((kChunk & (kChunk - 1)) == 0);
    const u32 shift8 = shift - 3;
    const u32 part = (1u << shift8) < kChunk ? shift8 : __builtin_ctz(kChunk);
    const u32 last_block = static_cast<u32>((N * ldb - 1) >> 3) >> shift8;
    const u32* words[ROWS];
    u32 start8[ROWS], holder[STEPS][ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      start8[r] = static_cast<u32>(start[r] >> 3);
      words[r] = reinterpret_cast<const u32*>(B) + start8[r];
#pragma unroll
      for (int s = 0; s < STEPS; s++) holder[s][r] = ((start8[r] & ((1u << part) - 1)) + s * SUBG_SIZE + lane) >> part;
    }
    const auto chunk = [&](i64 k, auto guarded) __attribute__((always_inline)) {
      float scale[ROWS];
      u32 word[STEPS][ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        // The chunk of a row touches at most SUBG_SIZE blocks: each lane fetches one scale for all.
        const u32 block = (((start8[r] + static_cast<u32>(k >> 3)) >> part) + lane) >> (shift8 - part);
        scale[r] = statistics.scale(block < last_block ? block : last_block);
        if constexpr (kBlockRead && !guarded) {
          u32 column[STEPS];
          block_read(words[r] + (k >> 3), column);
#pragma unroll
          for (int s = 0; s < STEPS; s++) word[s][r] = column[s];
        } else {
#pragma unroll
          for (int s = 0; s < STEPS; s++) {
            const i64 at = k + s * kSpan;
            word[s][r] = !guarded || at + lane * 8 < K ? (words[r] + (at >> 3))[lane] : 0;
          }
        }
      }
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        const i64 at = k + s * kSpan;
        const bool inside = !guarded || at + lane * 8 < K;
        float x[TILE_M][8] = {};
#pragma unroll
        for (int i = 0; i < TILE_M; i++) {
          if (inside) {
            load_eight(x_row[i] + at, lane, x[i]);
          }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          float partial[TILE_M] = {};
#pragma unroll
          for (int j = 0; j < 8; j++) {
            const float w = look_up(in_lane, word[s][r], j);
#pragma unroll
            for (int i = 0; i < TILE_M; i++) partial[i] += w * x[i][j];
          }
          const float block_scale = shuffle(scale[r], holder[s][r]);
#pragma unroll
          for (int i = 0; i < TILE_M; i++) sum[r][i] += inside ? partial[i] * block_scale : 0.0f;
        }
      }
    };
    i64 k = 0;
    for (; k + kSpan * STEPS <= K; k += kSpan * STEPS) chunk(k, constant<false>{});
    if (k < K) chunk(k, constant<true>{});
  } else if constexpr (NUM_PER_THREAD == 2) {
    static_assert(SUBG_SIZE == 16);
    for (i64 k = 0; k < K; k += kSpan) {
      float x0[TILE_M], x1[TILE_M];
#pragma unroll
      for (int i = 0; i < TILE_M; i++) load_pair(x_row[i] + k, lane, x0[i], x1[i]);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const i64 at = start[r] + k;
        const u32 c = (B + (at >> 1))[lane];
        const float w0 = shuffle(in_lane, c >> 4), w1 = shuffle(in_lane, c & 15), scale = statistics.scale(at >> shift);
#pragma unroll
        for (int i = 0; i < TILE_M; i++) sum[r][i] += (w0 * x0[i] + w1 * x1[i]) * scale;
      }
    }
  } else {
    for (i64 k = 0; k < K; k += SUBG_SIZE) {
      const bool inside = k + lane < K;
      float x[TILE_M];
#pragma unroll
      for (int i = 0; i < TILE_M; i++) x[i] = inside ? to_float(x_row[i][k + lane]) : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const i64 at = start[r] + k + lane;
        const float w = shuffle(in_lane, inside ? code_at(B, at) : 0);
        const float scaled = inside ? w * statistics.scale(at >> shift) : 0.0f;
#pragma unroll
        for (int i = 0; i < TILE_M; i++) sum[r][i] += inside ? scaled * x[i] : 0.0f;
      }
    }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
#pragma unroll
    for (int i = 0; i < TILE_M; i++) {
      const float total = sub_group_sum<SUBG_SIZE>(sum[r][i]);
      if (lane == 0 && row + r < N && m + i < M)
        out[(m + i) * ldc + row + r] = from_float<T>(bias ? total + to_float(bias[row + r]) : total);
    }
  }
}

}  // namespace bnb
