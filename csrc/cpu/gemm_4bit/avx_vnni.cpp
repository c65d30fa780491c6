// int8 activations by AVX-VNNI: the numbers of avx512_vnni.cpp, to the last bit.
#include <immintrin.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "gemm_4bit.h"

BNB_AVX_VNNI_BEGIN
namespace bnb::cpu {
namespace {
#include "avx2.h"
#include "avx2_finish.h"
#include "../transpose_avx2.h"
#include "avx2_panel.h"
#include "../dot_bytes_avx_vnni.h"
#include "int8_activations.h"

// kBlock elements as codes, as avx512_quantized.h has them.
template <class T>
float quantized(const T* in, int8_t* codes) {
  __m256 x[8], most = _mm256_setzero_ps(), nan = _mm256_setzero_ps();
  for (int i = 0; i < 8; i++) {
    x[i] = load(in + 8 * i);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(x[i], x[i], _CMP_UNORD_Q));
    most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x[i]));
  }
  const float top = _mm256_movemask_ps(nan) ? std::numeric_limits<float>::quiet_NaN() : largest(most);
  const __m256 inverse = _mm256_set1_ps(to_codes(top));
  for (int i = 0; i < 8; i++) {
    const __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes + 8 * i), _mm_packs_epi16(words, words));
  }
  return of_products(top);
}

using Words = __m256i;
constexpr int kWide = 8, kRows = 6, kPanels = 1;

__m256i load_words(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
__m256i broadcast_word(int32_t x) { return _mm256_set1_epi32(x); }
__m256 load_floats(const float* p) { return _mm256_loadu_ps(p); }
void store_floats(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
__m256 broadcast(float x) { return _mm256_set1_ps(x); }
__m256 to_floats(__m256i x) { return _mm256_cvtepi32_ps(x); }
__m256 fused(__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); }
#include "vnni.h"

void panel(const PanelOfB& b, void* out) {
  const __m256i table = _mm256_broadcastsi128_si256(table_in_bytes(b.code, 128)), nibble = _mm256_set1_epi8(15);
  for_each_dword(b, [&](int64_t row, int64_t k, __m256i dword, __m256 scale) {
    char* const block = static_cast<char*>(out) + k / kBlock * kPanelBlock + 4 * row;
    if (k % kBlock == 0) _mm256_store_ps(reinterpret_cast<float*>(block + kBlock * kPanel), scale);
    __m256i* const quads = reinterpret_cast<__m256i*>(block + k % kBlock * kPanel);
    _mm256_store_si256(quads, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(dword, 4), nibble)));
    _mm256_store_si256(quads + kVectors, _mm256_shuffle_epi8(table, _mm256_and_si256(dword, nibble)));
  });
}

const Implementation int8{
    gemm_4bit_int8, Isa::avx_vnni,
    Gemm{kRows, 1, kBlock, kElement, 4, &pack, &panel, nullptr, nullptr, &multiply, &finish, nullptr, nullptr}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
