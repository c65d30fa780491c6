#include <immintrin.h>

#include "quantize_blockwise.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx512.h"

// Codes of 16 elements by their buckets: an index, two look-ups, one comparison.
template <int DATA_TYPE>
BNB_INLINE __m512i codes_16(Lanes x) {
  constexpr const Buckets& b = DATA_TYPE == BNB_NF4 ? kNF4Buckets : kFP4Buckets;
  if constexpr (DATA_TYPE == BNB_NF4) {
    // NaN to -infinity: bucket 0, not above.
    const Lanes key = _mm512_max_ps(x, broadcast(-std::numeric_limits<float>::infinity()));
    const __m512i bucket = _mm512_castps_si512(_mm512_fmadd_ps(key, broadcast(b.scale), broadcast(b.offset)));
    const Lanes bound = _mm512_permutex2var_ps(_mm512_load_ps(b.bound), bucket, _mm512_load_ps(b.bound + 16));
    const __m512i below = _mm512_permutex2var_epi32(_mm512_load_si512(b.below), bucket, _mm512_load_si512(b.below + 16));
    return _mm512_mask_add_epi32(below, _mm512_cmp_ps_mask(key, bound, _CMP_GT_OQ), below, _mm512_set1_epi32(1));
  } else {
    const Lanes key = _mm512_max_ps(magnitude(x), broadcast(0));  // NaN to 0
    const __m512i bucket = _mm512_castps_si512(_mm512_fmadd_ps(key, broadcast(b.scale), broadcast(b.offset)));
    const __mmask16 greater = _mm512_cmp_ps_mask(key, _mm512_permutexvar_ps(bucket, _mm512_load_ps(b.bound)), _CMP_GT_OQ);
    const __m512i below = _mm512_permutexvar_epi32(bucket, _mm512_load_si512(b.below));
    const __m512i code = _mm512_mask_permutexvar_epi32(below, greater, bucket, _mm512_load_si512(b.above));
    return _mm512_mask_or_epi32(code, _mm512_cmp_ps_mask(x, broadcast(0), _CMP_LT_OQ), code, _mm512_set1_epi32(8));
  }
}

template <int DATA_TYPE, class T>
BNB_INLINE void packed_64(const T* from, Lanes scale0, Lanes scale1, uint8_t* to) {
  const __m512i a = codes_16<DATA_TYPE>(load(from) * scale0), b = codes_16<DATA_TYPE>(load(from + 16) * scale0);
  const __m512i c = codes_16<DATA_TYPE>(load(from + 32) * scale1), d = codes_16<DATA_TYPE>(load(from + 48) * scale1);
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
  const __m256i pairs = _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x0110)));  // first of two times 16
  // Two pairs each of a, b, c, d, and again.
  const __m256i order = _mm256_setr_epi16(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutexvar_epi16(order, pairs));
}

#include "blocks.h"

const Implementation four{quantize_4bit, Isa::avx512, &run_4bit};
const Implementation eight{quantize_8bit, Isa::avx512, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
