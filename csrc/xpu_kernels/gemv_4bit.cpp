// out[m, n] = sum over k of A[m, k] * datatype[B[n, k]] * absmax[(n * K + k) / blocksize] (+ bias[n])
//
// A sub-group owns ROWS rows of B and walks along k, so that the activation is loaded and widened once for all of them.
// The 16 values of the 4-bit type live in its lanes (one shuffle a look-up). Products and sums are fp32; a block's
// scale is applied to a lane's partial sum, not to each weight. B is flat: blocks may straddle rows.

namespace bnb {

// Statistics of the blocks; if absmax_8bit is not null they are themselves quantised in blocks of 256:
// scale = absmax_code[absmax_8bit[block]] * absmax[block / 256] + *absmax_offset.
struct Statistics {
  const float* absmax;
  const u8* absmax_8bit;
  const float* absmax_code;
  const float* absmax_offset;

  BNB_INLINE float scale(i64 block) const {
    if (!absmax_8bit) return absmax[block];
    return absmax_code[absmax_8bit[block]] * absmax[block >> 8] + *absmax_offset;
  }
};

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

// NUM_PER_THREAD is the number of weights that a lane takes at once:
//   8  for GPUs: K % 8 == 0, A aligned to 8 elements, B to 4 bytes;
//   2  for CPU devices (SUBG_SIZE 16): K % 32 == 0, A aligned to 2 elements; a step's 32 weights share one scale;
//   1  anything.
// BITS is the size of T in bits. `datatype` is a table of 16, or null for that of data_type. A's rows lie lda elements apart, B's ldb codes, out's ldc elements.
template <class T, int GROUP_SIZE, int NUM_PER_THREAD, int SUBG_SIZE, int BITS, int ROWS, int STEPS>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kgemv_4bit_inference(i64 N, i64 K, const T* A, const u8* B, const float* absmax, const u8* absmax_8bit,
                     const float* absmax_code, const float* absmax_offset, const T* bias, const float* datatype, i32 data_type,
                     T* out, i64 lda, i64 ldb, i64 ldc, i64 groups_per_row, i32 shift) {
  static_assert(sizeof(T) * 8 == BITS);
  constexpr int kSpan = SUBG_SIZE * NUM_PER_THREAD;
  constexpr int kRowsPerGroup = GROUP_SIZE / SUBG_SIZE * ROWS;
  const Statistics statistics{absmax, absmax_8bit, absmax_code, absmax_offset};
  const u32 lane = lane_id();
  const float in_lane = datatype ? datatype[lane & 15] : data_type == NF4 ? kNF4[lane & 15] : kFP4[lane & 15];
  const i64 m = group_id() / groups_per_row;
  const i64 row = (group_id() - m * groups_per_row) * kRowsPerGroup + sub_group_id() * ROWS;
  if (row >= N) return;
  const T* const x_row = A + m * lda;

  float sum[ROWS] = {};
  i64 start[ROWS];  // of the rows in B, in codes; past the last row, the last row again
#pragma unroll
  for (int r = 0; r < ROWS; r++) start[r] = (row + r < N ? row + r : N - 1) * ldb;

  if constexpr (NUM_PER_THREAD == 8) {
    const i64 last_block = (N * ldb - 1) >> shift;
    const u32 in_block = (1u << shift) - 1;
    const auto chunk = [&](i64 k, auto guarded) {
      float scale[ROWS];
      u32 word[STEPS][ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        // The chunk of a row touches at most SUBG_SIZE blocks: each lane fetches one scale for all.
        const i64 first = (start[r] + k) >> shift;
        const u32 left = static_cast<u32>(last_block - first < SUBG_SIZE ? last_block - first : SUBG_SIZE);
        scale[r] = statistics.scale(first + (lane < left ? lane : left));
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
          const i64 at = k + s * kSpan;
          word[s][r] = !guarded || at + lane * 8 < K ? reinterpret_cast<const u32*>(B + ((start[r] + at) >> 1))[lane] : 0;
        }
      }
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        const i64 at = k + s * kSpan;
        float x[8] = {};
        if (!guarded || at + lane * 8 < K) {
          const auto a = reinterpret_cast<const pack<T, 8>*>(x_row + at)[lane];
#pragma unroll
          for (int j = 0; j < 8; j++) x[j] = to_float(a.v[j]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          float partial = 0;
#pragma unroll
          for (int j = 0; j < 8; j++) partial += shuffle(in_lane, code_of(word[s][r], j)) * x[j];
          const u32 within = static_cast<u32>(start[r] + k) & in_block;
          const float block_scale = shuffle(scale[r], (within + s * kSpan + lane * 8) >> shift);
          sum[r] += guarded && at + lane * 8 >= K ? 0.0f : partial * block_scale;
        }
      }
    };
    struct Yes { constexpr operator bool() const { return true; } };
    struct No { constexpr operator bool() const { return false; } };
    i64 k = 0;
    for (; k + kSpan * STEPS <= K; k += kSpan * STEPS) chunk(k, No{});
    if (k < K) chunk(k, Yes{});
  } else if constexpr (NUM_PER_THREAD == 2) {
    static_assert(SUBG_SIZE == 16);
    for (i64 k = 0; k < K; k += kSpan) {
      float x0, x1;
      load_pair(x_row + k, lane, x0, x1);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const i64 at = start[r] + k;
        const u32 c = (B + (at >> 1))[lane];
        sum[r] += (shuffle(in_lane, c >> 4) * x0 + shuffle(in_lane, c & 15) * x1) * statistics.scale(at >> shift);
      }
    }
  } else {
    for (i64 k = 0; k < K; k += SUBG_SIZE) {
      const bool inside = k + lane < K;
      const float x = inside ? to_float(x_row[k + lane]) : 0.0f;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const i64 at = start[r] + k + lane;
        const float w = shuffle(in_lane, inside ? code_at(B, at) : 0);
        if (inside) sum[r] += w * x * statistics.scale(at >> shift);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const float total = sub_group_sum<SUBG_SIZE>(sum[r]);
    if (lane == 0 && row + r < N)
      out[m * ldc + row + r] = from_float<T>(bias ? total + to_float(bias[row + r]) : total);
  }
}

}  // namespace bnb
