// The product of a few rows of activations with 4-bit weights, which are never written out.
//
// On CPU devices, for up to 8 rows of A, a lane owns ROWS rows of B and TILE_M rows of A: it looks a weight up once (among
// the lanes, one shuffle) and multiplies it with TILE_M activations, which all lanes share: one load for a whole sub-group,
// if the activations lie together. They do in X, A widened to fp32 and transposed (kWidenTransposed). A block's scale is
// applied to its partial sums. For more rows, and where blocks straddle rows, kgemm_4bit_inference_along_m.
#include "dot_4bit.h"
#include "vectors.h"

namespace bnb {

BNB_INLINE x16<float> widened(const float* p, i64 count) { return first_of(p, count); }
BNB_INLINE x16<float> widened(const half* p, i64 count) { return __builtin_convertvector(first_of(p, count), x16<float>); }
BNB_INLINE x16<float> widened(const bfloat16* p, i64 count) {
  return bits_as<x16<float>>(__builtin_convertvector(first_of(reinterpret_cast<const u16*>(p), count), x16<u32>) << 16);
}

// X[k * padded_m + m] = A[m * lda + k], and 0 for m from M to padded_m. A work-group takes GROUP_COLUMNS columns.
template <class T, int GROUP_COLUMNS>
BNB_KERNEL_OF_ONE
kWidenTransposed(const T* A, float* X, i64 M, i64 K, i64 lda, i64 padded_m) {
  const auto load = [&](i64 m, i64 k) __attribute__((always_inline)) { return bits_as<x16<u32>>(widened(A + m * lda + k, K - k)); };
  pack_transposed<GROUP_COLUMNS>(reinterpret_cast<u32*>(X), K, M, padded_m, load);
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
  const float in_lane = value_of_lane(datatype, data_type);
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
          const float w = look_up(in_lane, words[r][i], j);
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
// share. A sub-group takes GROUP_ROWS rows of B in parts of ROWS rows and CHUNK columns, whose weights it writes, scaled, into
// local memory (the first cache); the next part's are decoded between the products of this one, which leave units idle, where rows
// of B begin at multiples of 32 codes, and else after them. Codes are taken 32 at a time as B holds them, whatever column their
// first one is: what belongs to other rows lands in the kSpare values between the rows. The other arguments are those of dot_4bit.
template <class T, int SUBG_SIZE, int GROUP_ROWS, int ROWS, int VECTORS, int CHUNK>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kgemm_4bit_inference_along_m(i64 M, i64 N, i64 K, const float* X, const u8* B, const float* absmax, const u8* absmax_8bit,
                             const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                             i32 data_type, T* out, i64 padded_m, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  constexpr int kTile = 16 * VECTORS, kSpare = 32, kStride = CHUNK + kSpare, kPart = kSpare + ROWS * kStride;
  constexpr int kColumns = 32 / ROWS;  // multiplied for 32 codes that are decoded
  static_assert(SUBG_SIZE == 16 && GROUP_ROWS % 16 == 0 && GROUP_ROWS % ROWS == 0 && 32 % ROWS == 0 && CHUNK % 32 == 0);
  static local_memory<float[2 * kPart]> weights;
  static local_memory<float[GROUP_ROWS * kTile]> sums;
  float* w = weights.data + kSpare;
  float* next_w = w + kPart;
  float* const total = sums.data;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id(), nibble = lane & 1 ? 0 : 4;
  const float in_lane = value_of_lane(datatype, data_type);
  const i64 row_group = tiles_m == 1 ? group_id() : group_id() / tiles_m;
  const i64 m0 = (group_id() - row_group * tiles_m) * kTile;
  const i64 row0 = row_group * GROUP_ROWS;
  const int rows = N - row0 < GROUP_ROWS ? static_cast<int>(N - row0) : GROUP_ROWS;
  const i64 bytes = ((N - 1) * ldb + K + 1) >> 1;

  // Writes 32 weights of one block, whose first code is `start`; each lane has a byte of theirs.
  const auto decode = [&](float* to, i64 start, u32 c) __attribute__((always_inline)) {
    const float scale = statistics.scale(start >> shift);
    to[lane] = shuffle(in_lane, shuffle(c, lane >> 1) >> nibble & 15) * scale;
    (to + 16)[lane] = shuffle(in_lane, shuffle(c, 8 + (lane >> 1)) >> nibble & 15) * scale;
  };
  const auto decode_part = [&](float* to, const Part& part) __attribute__((always_inline)) {
    if (!part.columns) return;
    for (int r = part.r; r < part.r + ROWS && r < rows; r++, to += kStride) {  // rows behind: multiplied, and not written
      const i64 start = (row0 + r) * ldb + part.k0;
      const int before = start & 31;
      for (int k = -before; k < part.columns; k += 32) {
        const i64 from = (start + k) >> 1;
        const u32 c = from + 16 <= bytes ? (B + from)[lane] : from + lane < bytes ? (B + from)[lane] : 0;
        decode(to + k, start + k, c);
      }
    }
  };

  decode_part(w, {0, 0, columns_from<CHUNK>(0, K)});
  for_parts<ROWS, CHUNK>(rows, K, ldb, [&](const Part& part, const Part& next, bool beside) __attribute__((always_inline)) {
    if (part.r == 0) {
      for (int r = 0; r < rows; r += 16) {  // a row a lane
        const i64 ahead = (row0 + r + lane) * ldb + part.k0 + 2 * CHUNK;
        prefetch(B + (ahead >> 1));
        prefetch_scale(statistics, ahead >> shift);
      }
    }
    float sum[ROWS][VECTORS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int v = 0; v < VECTORS; v++) sum[i][v] = 0.0f;  // of a part alone: a long chain of additions loses too much
    const auto multiply = [&](int k) __attribute__((always_inline)) {
      const float* const from = X + (part.k0 + k) * padded_m + m0;
      float x[VECTORS];
#pragma unroll
      for (int v = 0; v < VECTORS; v++) x[v] = (from + 16 * v)[lane];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const float weight = w[i * kStride + k];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) sum[i][v] = __builtin_fmaf(weight, x[v], sum[i][v]);
      }
    };
    sub_group_barrier();
    if (beside) {
      for (int k = 0, d = 0; k < CHUNK; k += kColumns, d++) {
        const int row = d / (CHUNK / 32), column = d % (CHUNK / 32) * 32;
        const i64 start = (row0 + next.r + row) * ldb + next.k0 + column;
        decode(next_w + row * kStride + column, start, (B + (start >> 1))[lane]);
#pragma unroll
        for (int i = 0; i < kColumns; i++) multiply(k + i);
      }
    } else {
      for (int k = 0; k < part.columns; k++) multiply(k);
      decode_part(next_w, next);
    }
    exchange(w, next_w);
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        float* const to = total + (part.r + i) * kTile + 16 * v;
        to[lane] = part.k0 ? to[lane] + sum[i][v] : sum[i][v];
      }
  });
  sub_group_barrier();

  const int here = M - m0 < kTile ? static_cast<int>(M - m0) : kTile;
  for (int r = 0; r < rows; r += 16) {
    if (lane < static_cast<u32>(rows - r)) {
      const float add = bias ? to_float((bias + row0 + r)[lane]) : 0.0f;
      for (int m = 0; m < here; m++)
        (out + (m0 + m) * ldc + row0 + r)[lane] = from_float<T>(K ? total[(r + lane) * kTile + m] + add : add);
    }
  }
}

// Columns i * SUBG_SIZE + lane of a row, i < COUNT: by a message of the sub-group's where it has 16 lanes and is not LOCAL.
template <int SUBG_SIZE, bool LOCAL, class T, int COUNT>
BNB_INLINE void load_columns(const T* row, float (&x)[COUNT]) {
  if constexpr (SUBG_SIZE == 16 && !LOCAL) {
    using Word = word_of<sizeof(T)>;
    Word words[COUNT];
    block_read(reinterpret_cast<const Word*>(row), words);
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = to_float(bits_as<T>(words[i]));
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = to_float((row + i * SUBG_SIZE)[lane_id()]);
  }
}

// For GPUs. As in kgemm_4bit_inference a lane owns ROWS rows of B and TILE_M rows of A and looks a weight up once, but A is as it
// is: a sub-group loads 32 columns of it, and what its lanes hold, each multiplies by: through local memory (LOCAL: written
// transposed, read four rows at a time), or from the lane that has it, which Intel's vector engines take as an operand. SPLIT_K
// sub-groups share the rows and take 32 columns of k in turn, so that all of them read a line of B at about the same time; their
// sums meet in local memory. K and ldb are multiples of 32, B is aligned to 16 bytes, N * ldb is less than 2^34, and rows of A
// begin at multiples of 4 bytes. The other arguments are those of dot_4bit.
template <class T, int SUBG_SIZE, int SPLIT_K, int ROWS, int TILE_M, bool LOCAL>
BNB_KERNEL(SUBG_SIZE* SPLIT_K, SUBG_SIZE)
kgemm_4bit_inference_along_n(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                             const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                             i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  constexpr int kLoads = 32 / SUBG_SIZE, kStride = TILE_M + 4;  // which keeps the lanes' rows in banks of their own
  constexpr int kSums = SUBG_SIZE * ROWS * TILE_M, kColumns = LOCAL ? 32 * kStride : 0;
  alignas(16) static local_memory<float[SPLIT_K * (kSums > kColumns ? kSums : kColumns)]> shared;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id();
  const float in_lane = value_of_lane(datatype, data_type);
  const u32 group = group_id(), split = uniform(local_id() / SUBG_SIZE);
  const u32 row_block = tiles_m == 1 ? group : uniform(group / static_cast<u32>(tiles_m));
  const i64 m0 = static_cast<i64>(group - row_block * static_cast<u32>(tiles_m)) * TILE_M;
  const i64 row0 = static_cast<i64>(row_block) * (SUBG_SIZE * ROWS);
  float* const columns = shared.data + split * kColumns;

  // Past the last row, of A or of B, the last row again: read, and not written.
  const T* x_row[TILE_M];
#pragma unroll
  for (int m = 0; m < TILE_M; m++) x_row[m] = A + (m0 + m < M ? m0 + m : M - 1) * lda;
  u32 start8[ROWS];  // of a row, in words of eight codes
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const i64 row = row0 + r * SUBG_SIZE + lane;
    start8[r] = static_cast<u32>((row < N ? row : N - 1) * ldb >> 3);
  }

  struct Step {
    pack<u32, 4> words[ROWS];
    float scale[ROWS], x[LOCAL ? TILE_M : 1][kLoads];
  };
  const auto fetch = [&](Step& step, i64 k) __attribute__((always_inline)) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const u32 word = start8[r] + static_cast<u32>(k >> 3);
      step.words[r] = *reinterpret_cast<const pack<u32, 4>*>(reinterpret_cast<const u32*>(B) + word);
      step.scale[r] = statistics.scale(word >> (shift - 3));
    }
    if constexpr (LOCAL) {
#pragma unroll
      for (int m = 0; m < TILE_M; m++) load_columns<SUBG_SIZE, LOCAL>(x_row[m] + k, step.x[m]);
    }
  };

  float sum[ROWS][TILE_M] = {};
  i64 k = split * 32;
  Step step;
  if (k < K) fetch(step, k);
  for (; k < K; k += 32 * SPLIT_K) {
    float held[LOCAL ? 1 : TILE_M][kLoads];
    if constexpr (LOCAL) {
      sub_group_barrier();
#pragma unroll
      for (int i = 0; i < kLoads; i++) {
#pragma unroll
        for (int m = 0; m < TILE_M; m += 4)
          *reinterpret_cast<pack<float, 4>*>(columns + (i * SUBG_SIZE + lane) * kStride + m) = {step.x[m][i], step.x[m + 1][i],
                                                                                                step.x[m + 2][i], step.x[m + 3][i]};
      }
      sub_group_barrier();
    } else {
#pragma unroll
      for (int m = 0; m < TILE_M; m++) load_columns<SUBG_SIZE, LOCAL>(x_row[m] + k, held[m]);
    }
    Step next;
    if (k + 32 * SPLIT_K < K) fetch(next, k + 32 * SPLIT_K);
    float partial[ROWS][TILE_M] = {};
#pragma unroll
    for (int j = 0; j < 32; j++) {
      float x[TILE_M];
#pragma unroll
      for (int m = 0; m < TILE_M; m += 4) {
        if constexpr (LOCAL) {
          const auto four = *reinterpret_cast<const pack<float, 4>*>(columns + j * kStride + m);
#pragma unroll
          for (int c = 0; c < 4; c++) x[m + c] = four.v[c];
        } else {
#pragma unroll
          for (int c = 0; c < 4; c++) x[m + c] = shuffle(held[m + c][j / SUBG_SIZE], j % SUBG_SIZE);
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const float w = look_up(in_lane, step.words[r].v[j / 8], j % 8);
#pragma unroll
        for (int m = 0; m < TILE_M; m++) partial[r][m] += w * x[m];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int m = 0; m < TILE_M; m++) sum[r][m] += partial[r][m] * step.scale[r];
    step = next;
  }

  if constexpr (LOCAL) barrier();  // the columns were where the sums go
  float* const sums = shared.data;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int m = 0; m < TILE_M; m++) sums[split * kSums + (m * ROWS + r) * SUBG_SIZE + lane] = sum[r][m];
  barrier();
  for (u32 e = split * SUBG_SIZE + lane; e < kSums; e += SPLIT_K * SUBG_SIZE) {
    float total = 0;
#pragma unroll
    for (int j = 0; j < SPLIT_K; j++) total += sums[j * kSums + e];
    const i64 row = row0 + e % (SUBG_SIZE * ROWS), m = m0 + e / (SUBG_SIZE * ROWS);
    if (row < N && m < M) out[m * ldc + row] = from_float<T>(bias ? total + to_float(bias[row]) : total);
  }
}

// The same for any K and any pointer, with A as it is: its lanes share k, see dot_4bit.h.
template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int ROWS, int STEPS, int TILE_M>
BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, NUM_PER_THREAD > 1 && kNarrowRegisters ? 256 : 128)
kgemm_4bit_inference_along_k(i64 M, i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                             const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype,
                             i32 data_type, T* out, i64 lda, i64 ldb, i64 ldc, i64 tiles_m, i32 shift) {
  dot_4bit<T, GROUP_SIZE, NUM_PER_THREAD, SUBG_SIZE, ROWS, STEPS, TILE_M>(M, N, K, A, B,
                                                                          {absmax, absmax_8bit, absmax_code, absmax_offset}, bias,
                                                                          datatype, data_type, out, lda, ldb, ldc, tiles_m, shift);
}

}  // namespace bnb
