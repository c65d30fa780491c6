#include <immintrin.h>

#include "quantize_blockwise.h"

namespace bnb::cpu {
namespace {

// The bounds by comparison, as in map256.h: comparison d finds its bound at 2^d plus its path.
struct Tree {
  alignas(32) float at[16];
};
constexpr Tree tree_of(int data_type) {
  Tree tree{};
  const int levels = data_type == BNB_NF4 ? 4 : 3;
  for (int d = 0; d < levels; d++)
    for (int path = 0; path < 1 << d; path++) {
      int prefix = 0;
      for (int j = 0; j < d; j++) prefix = 2 * prefix + (path >> j & 1);
      const int rank = ((2 * prefix + 1) << (levels - 1 - d)) - 1;
      tree.at[(1 << d) + path] = data_type == BNB_NF4 ? kNF4Bounds[rank] : kFP4Bounds[rank];
    }
  return tree;
}
constexpr Tree kNF4Tree = tree_of(BNB_NF4), kFP4Tree = tree_of(BNB_FP4);

}  // namespace
}  // namespace bnb::cpu

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx2.h"

// The outcomes of the comparisons, the first in the lowest bit; of FP4 the sign in bit 3. NaN is not greater.
template <int DATA_TYPE>
BNB_INLINE __m256i path_of_4bit(Lanes x) {
  constexpr const float* at = DATA_TYPE == BNB_NF4 ? kNF4Tree.at : kFP4Tree.at;
  const auto greater = [&](Lanes a, Lanes b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); };
  const auto bit = [&](Lanes mask, int value) { return _mm256_and_si256(_mm256_castps_si256(mask), _mm256_set1_epi32(value)); };
  const Lanes key = DATA_TYPE == BNB_NF4 ? x : magnitude(x);
  const Lanes first = greater(key, broadcast(at[1]));
  const Lanes second = greater(key, _mm256_blendv_ps(broadcast(at[2]), broadcast(at[3]), first));
  const Lanes third_bounds = _mm256_setr_ps(at[4], at[5], at[6], at[7], at[4], at[5], at[6], at[7]);
  __m256i path = _mm256_or_si256(bit(first, 1), bit(second, 2));
  path = _mm256_or_si256(path, bit(greater(key, _mm256_permutevar8x32_ps(third_bounds, path)), 4));
  const Lanes fourth =
      DATA_TYPE == BNB_NF4 ? greater(x, _mm256_permutevar8x32_ps(_mm256_load_ps(at + 8), path)) : greater(broadcast(0), x);
  return _mm256_or_si256(path, bit(fourth, 8));
}

template <int DATA_TYPE, class T>
BNB_INLINE void packed_64(const T* from, Lanes scale0, Lanes scale1, uint8_t* to) {
  const __m128i codes = DATA_TYPE == BNB_NF4 ? _mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)
                                             : _mm_setr_epi8(0, 4, 6, 2, 1, 5, 7, 3, 8, 12, 14, 10, 9, 13, 15, 11);
  const __m256i of_path = _mm256_broadcastsi128_si256(codes);
  for (int h = 0; h < 2; h++) {
    __m256i paths[4];
    for (int j = 0; j < 4; j++) paths[j] = path_of_4bit<DATA_TYPE>(load(from + 32 * h + 8 * j) * (h ? scale1 : scale0));
    const __m256i code = _mm256_shuffle_epi8(of_path, bytes_of(paths[0], paths[1], paths[2], paths[3]));
    const __m256i pairs = _mm256_maddubs_epi16(code, _mm256_set1_epi16(0x0110));  // first of two times 16
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * h), _mm256_castsi256_si128(bytes));
  }
}

#include "blocks.h"

const Implementation four{quantize_4bit, Isa::avx2, &run_4bit};
const Implementation eight{quantize_8bit, Isa::avx2, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
