#include <immintrin.h>

#include "../lanes.h"
#include "dequantize_blockwise.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx2.h"

// A table of 16 values of T as bytes: plane b holds byte b of each, in both halves.
template <class T>
struct Planes {
  __m256i plane[sizeof(T)];
  BNB_INLINE explicit Planes(const T* table) {
    alignas(16) uint8_t bytes[sizeof(T)][16];
    for (int i = 0; i < 16; i++) {
      uint8_t value[sizeof(T)];
      __builtin_memcpy(value, table + i, sizeof value);
      for (size_t b = 0; b < sizeof(T); b++) bytes[b][i] = value[b];
    }
    for (size_t b = 0; b < sizeof(T); b++)
      plane[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes[b])));
  }
};

template <bool STREAM>
BNB_INLINE void put(void* out, __m256i value) {
  if constexpr (STREAM) {
    _mm256_stream_si256(static_cast<__m256i*>(out), value);
  } else {
    _mm256_storeu_si256(static_cast<__m256i*>(out), value);
  }
}

// 32 elements of 16 bytes: a look-up for each byte of theirs, interleaved.
template <bool STREAM, class T>
BNB_INLINE void values_32(const Planes<T>& table, const uint8_t* in, T* out) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in)), low = _mm_set1_epi8(15);
  const __m128i first = _mm_and_si128(_mm_srli_epi16(packed, 4), low), second = _mm_and_si128(packed, low);
  // Elements 0 to 15 and 16 to 31.
  const __m256i code = _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
  const auto byte = [&](int b) { return _mm256_shuffle_epi8(table.plane[b], code); };
  const __m256i a = _mm256_unpacklo_epi8(byte(0), byte(1)), b = _mm256_unpackhi_epi8(byte(0), byte(1));
  if constexpr (sizeof(T) == 2) {
    put<STREAM>(out, _mm256_permute2x128_si256(a, b, 0x20));
    put<STREAM>(out + 16, _mm256_permute2x128_si256(a, b, 0x31));
  } else {
    const __m256i c = _mm256_unpacklo_epi8(byte(2), byte(3)), d = _mm256_unpackhi_epi8(byte(2), byte(3));
    const __m256i ac0 = _mm256_unpacklo_epi16(a, c), ac1 = _mm256_unpackhi_epi16(a, c);
    const __m256i bd0 = _mm256_unpacklo_epi16(b, d), bd1 = _mm256_unpackhi_epi16(b, d);
    put<STREAM>(out, _mm256_permute2x128_si256(ac0, ac1, 0x20));
    put<STREAM>(out + 8, _mm256_permute2x128_si256(bd0, bd1, 0x20));
    put<STREAM>(out + 16, _mm256_permute2x128_si256(ac0, ac1, 0x31));
    put<STREAM>(out + 24, _mm256_permute2x128_si256(bd0, bd1, 0x31));
  }
}

template <class T, bool STREAM>
void blocks_4bit(const Dequantize& d, int64_t first, int64_t last) {
  T* const out = static_cast<T*>(d.out);
  for (int64_t block = first; block < last; block++) {
    alignas(32) T table[16];
    for (int i = 0; i < 16; i += kLanes) store(table + i, load(d.code + i) * d.absmax[block]);
    const Planes<T> planes(table);
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    int64_t i = begin;
    for (; i + 32 <= end; i += 32) values_32<STREAM>(planes, d.A + i / 2, out + i);
    for (; i < end; i++) out[i] = table[d.A[i >> 1] >> (i & 1 ? 0 : 4) & 15];
  }
  if constexpr (STREAM) _mm_sfence();
}

template <class T>
void blocks_8bit(const Dequantize& d, int64_t first, int64_t last) {
  T* const out = static_cast<T*>(d.out);
  for (int64_t block = first; block < last; block++) {
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    const float scale = d.absmax[block];
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) store(out + i, values_of(d.code, d.A + i) * scale);
    for (; i < end; i++) out[i] = from_float<T>(d.code[d.A[i]] * scale);
  }
}

void run_4bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) {
    using T = decltype(zero);
    d.stream ? blocks_4bit<T, true>(d, first, last) : blocks_4bit<T, false>(d, first, last);
  });
}
void run_8bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) { blocks_8bit<decltype(zero)>(d, first, last); });
}

const Implementation four{dequantize_4bit, Isa::avx2, &run_4bit};
const Implementation eight{dequantize_8bit, Isa::avx2, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
