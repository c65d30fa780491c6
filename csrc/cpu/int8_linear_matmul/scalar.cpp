#include <emmintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

// Every x86-64 has SSE2, with a product of pairs of int16.
namespace bnb::cpu {
namespace {
#include "../lanes_scalar.h"
#include "../int8_lanes_scalar.h"

using Words = __m128i;
constexpr int kWide = 4, kRows = 6;

BNB_INLINE Words load_words(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
BNB_INLINE void store_words(void* p, Words x) { _mm_storeu_si128(static_cast<__m128i*>(p), x); }
BNB_INLINE Words broadcast_word(int32_t x) { return _mm_set1_epi32(x); }
BNB_INLINE int32_t sum_words(Words x) {
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
BNB_INLINE Words load_bytes(const void* p, int64_t bytes) {
  if (bytes >= 16) return load_words(p);
  alignas(16) char copy[16] = {};
  __builtin_memcpy(copy, p, static_cast<size_t>(bytes));
  return load_words(copy);
}
BNB_INLINE void transpose(Words (&x)[4]) {
  const Words a = _mm_unpacklo_epi32(x[0], x[1]), b = _mm_unpackhi_epi32(x[0], x[1]);
  const Words c = _mm_unpacklo_epi32(x[2], x[3]), d = _mm_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm_unpacklo_epi64(a, c), x[1] = _mm_unpackhi_epi64(a, c);
  x[2] = _mm_unpacklo_epi64(b, d), x[3] = _mm_unpackhi_epi64(b, d);
}
// In word i the sum of x[i].
BNB_INLINE Words sum_each(const Words (&x)[4]) {
  Words y[4] = {x[0], x[1], x[2], x[3]};
  transpose(y);
  return _mm_add_epi32(_mm_add_epi32(y[0], y[1]), _mm_add_epi32(y[2], y[3]));
}

#include "kernel.h"

#include "pairs.h"
struct Engine : Pairs {
  static BNB_INLINE void prepare(Words x, Words (&parts)[2]) {
    parts[0] = _mm_srai_epi16(_mm_slli_epi16(x, 8), 8);
    parts[1] = _mm_srai_epi16(x, 8);
  }
  static BNB_INLINE void prepare_row(Words x, Words (&parts)[2]) { prepare(x, parts); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return _mm_add_epi32(sums, _mm_madd_epi16(b, a)); }
};

const Implementation implementation{int8_product, Isa::scalar, kernels_of<Engine>()};

}  // namespace
}  // namespace bnb::cpu
