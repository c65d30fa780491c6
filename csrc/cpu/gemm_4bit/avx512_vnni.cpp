// int8 activations by VNNI.
#include <immintrin.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "gemm_4bit.h"

BNB_AVX512_VNNI_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_finish.h"
#include "../transpose_avx512.h"
#include "avx512_panel.h"
#include "../dot_bytes_avx512.h"
#include "int8_activations.h"
#include "avx512_quantized.h"

using Words = __m512i;
constexpr int kWide = 16, kRows = 12, kPanels = 2;

__m512i load_words(const void* p) { return _mm512_load_si512(p); }
__m512i broadcast_word(int32_t x) { return _mm512_set1_epi32(x); }
__m512 load_floats(const float* p) { return _mm512_loadu_ps(p); }
void store_floats(float* p, __m512 x) { _mm512_storeu_ps(p, x); }
__m512 broadcast(float x) { return _mm512_set1_ps(x); }
__m512 to_floats(__m512i x) { return _mm512_cvtepi32_ps(x); }
__m512 fused(__m512 x, __m512 y, __m512 z) { return _mm512_fmadd_ps(x, y, z); }
#include "vnni.h"

void panel(const PanelOfB& b, void* out) {
  const __m512i table = _mm512_broadcast_i32x4(table_in_bytes(b.code, 128)), nibble = _mm512_set1_epi8(15);
  for_each_dword(b, [&](int64_t k, __m512i dword, __m512 scale) {
    char* const block = static_cast<char*>(out) + k / kBlock * kPanelBlock;
    if (k % kBlock == 0) _mm512_store_ps(block + kBlock * kPanel, scale);
    char* const quads = block + k % kBlock * kPanel;
    _mm512_store_si512(quads, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(dword, 4), nibble)));
    _mm512_store_si512(quads + 4 * kPanel, _mm512_shuffle_epi8(table, _mm512_and_si512(dword, nibble)));
  });
}

const Implementation int8{
    gemm_4bit_int8, Isa::avx512_vnni,
    Gemm{kRows, 1, kBlock, kElement, 4, &pack, &panel, nullptr, nullptr, &multiply, &finish, nullptr, nullptr}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
