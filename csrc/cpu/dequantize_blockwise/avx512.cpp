#include <immintrin.h>

#include "../lanes.h"
#include "dequantize_blockwise.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx512.h"

template <class T>
__m256i rounded_bits(__m512 x) {
  if constexpr (std::is_same_v<T, half>) return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat16_bits(x), 16));
}

template <bool STREAM>
void put(void* out, __m512i value) {
  if constexpr (STREAM) {
    _mm512_stream_si512(static_cast<__m512i*>(out), value);
  } else {
    _mm512_storeu_si512(out, value);
  }
}

// 64 bytes of output at a time. A block has as many, or a multiple: its table is scaled and rounded first, so that an
// element costs a look-up and nothing else. Look-ups read the low bits of their index: nothing is masked.
template <class T, bool STREAM>
void blocks_4bit(const Dequantize& d, int64_t first, int64_t last) {
  const __m512 code = _mm512_loadu_ps(d.code);
  T* const out = static_cast<T*>(d.out);
  for (int64_t block = first; block < last; block++) {
    const __m512 scaled = _mm512_mul_ps(code, _mm512_set1_ps(d.absmax[block]));
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    const uint8_t* in = d.A + begin / 2;
    int64_t i = begin;
    if constexpr (sizeof(T) == 4) {
      for (; i + 16 <= end; i += 16, in += 8) {
        const __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(in)));
        const __m512i index = _mm512_or_si512(_mm512_srli_epi64(byte, 4), _mm512_slli_epi64(byte, 32));
        put<STREAM>(out + i, _mm512_castps_si512(_mm512_permutexvar_ps(index, scaled)));
      }
      alignas(64) float table[16];
      _mm512_store_ps(table, scaled);
      for (; i < end; i++) out[i] = table[d.A[i >> 1] >> (i & 1 ? 0 : 4) & 15];
    } else {
      const __m512i table = _mm512_broadcast_i64x4(rounded_bits<T>(scaled));
      for (; i + 32 <= end; i += 32, in += 16) {
        const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
        const __m512i index = _mm512_or_si512(_mm512_srli_epi32(byte, 4), _mm512_slli_epi32(byte, 16));
        put<STREAM>(out + i, _mm512_permutexvar_epi16(index, table));
      }
      alignas(64) T entries[32];
      _mm512_store_si512(entries, table);
      for (; i < end; i++) out[i] = entries[d.A[i >> 1] >> (i & 1 ? 0 : 4) & 15];
    }
  }
  if constexpr (STREAM) _mm_sfence();
}

// One step's output: 16 values.
template <class T, bool STREAM>
void store_values(T* out, __m512 value) {
  if constexpr (sizeof(T) == 4) {
    put<STREAM>(out, _mm512_castps_si512(value));
  } else if constexpr (STREAM) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(out), rounded_bits<T>(value));
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), rounded_bits<T>(value));
  }
}

template <class T, bool STREAM>
void blocks_8bit(const Dequantize& d, int64_t first, int64_t last) {
  T* const out = static_cast<T*>(d.out);
  for (int64_t block = first; block < last; block++) {
    const __m512 scale = _mm512_set1_ps(d.absmax[block]);
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    int64_t i = begin;
    for (; i + 16 <= end && i % 16; i++) out[i] = from_float<T>(d.code[d.A[i]] * d.absmax[block]);  // to an aligned place
    for (; i + 16 <= end; i += 16) store_values<T, STREAM>(out + i, values_of(d.code, d.A + i) * scale);
    for (; i < end; i++) out[i] = from_float<T>(d.code[d.A[i]] * d.absmax[block]);
  }
  if constexpr (STREAM) _mm_sfence();
}

void run_4bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    d.stream ? blocks_4bit<T, true>(d, first, last) : blocks_4bit<T, false>(d, first, last);
  });
}
void run_8bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    d.stream ? blocks_8bit<T, true>(d, first, last) : blocks_8bit<T, false>(d, first, last);
  });
}

const Implementation four{dequantize_4bit, Isa::avx512, &run_4bit};
const Implementation eight{dequantize_8bit, Isa::avx512, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
