// int8 activations by VNNI.
#include <immintrin.h>

#include <cmath>
#include <limits>

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

constexpr int64_t kQuads = kBlock / 4;

template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, char* tile) {
  // Of 8 elements the even ones come first: the high halves of their codes' bytes.
  const __m512i order = _mm512_broadcast_i32x4(_mm_set_epi8(15, 13, 11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0));
  for (int64_t k = first; k < last; k += kBlock) {
    char* const block = tile + k * height * kElement;
    int32_t* const quads = reinterpret_cast<int32_t*>(block);
    float* const scales = reinterpret_cast<float*>(block + height * kBlock);
    int32_t* const sums = reinterpret_cast<int32_t*>(scales + height);
    for (int64_t r = 0; r < height; r++) {
      scales[r] = 0;
      __m512i all = _mm512_setzero_si512();
      if (r < rows) all = quantized(static_cast<const T*>(p.A) + (row + r) * p.lda + k, scales[r]);
      // The look-ups give code + 128: as much too much as 128 times this sum.
      sums[r] = -128 * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), all));
      alignas(64) int32_t ordered[kQuads];
      _mm512_store_si512(ordered, _mm512_shuffle_epi8(all, order));
      for (int64_t q = 0; q < kQuads; q++) quads[q * height + r] = ordered[q];
    }
  }
}

// Of each block [quad][kPanel][4] of unsigned bytes, then the scales.
void panel(const PanelOfB& b, void* out) {
  const __m512i table = table_in_bytes(b.code, 128);
  const __m512i nibble = _mm512_set1_epi8(15);
  for_each_dword(b, [&](int64_t k, __m512i dword, __m512 scale) {
    char* const block = static_cast<char*>(out) + k / kBlock * kBlock * kPanel * kElement;
    if (k % kBlock == 0) _mm512_store_ps(block + kBlock * kPanel, scale);
    char* const quads = block + k % kBlock * kPanel;
    _mm512_store_si512(quads, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32(dword, 4), nibble)));
    _mm512_store_si512(quads + 64, _mm512_shuffle_epi8(table, _mm512_and_si512(dword, nibble)));
  });
}

template <int ROWS, int PANELS>
void tile_of(const char* a, const char* b, int64_t stride, int64_t k, float* c, int64_t width) {
  for (int64_t from = 0; from < k; from += kBlock, a += ROWS * kBlock * kElement, b += kPanel * kBlock * kElement) {
    const int32_t* quads = reinterpret_cast<const int32_t*>(a);
    const float* const scales = reinterpret_cast<const float*>(a + ROWS * kBlock);
    const int32_t* const sums = reinterpret_cast<const int32_t*>(scales + ROWS);
    __m512i sum[ROWS][PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) sum[r][i] = _mm512_set1_epi32(sums[r]);
    for (int64_t q = 0; q < kQuads; q++, quads += ROWS) {
      __m512i codes[PANELS];
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) codes[i] = _mm512_load_si512(b + i * stride + q * 64);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int i = 0; i < PANELS; i++) sum[r][i] = dot_bytes(sum[r][i], codes[i], _mm512_set1_epi32(quads[r]));
    }
#pragma GCC unroll 2
    for (int i = 0; i < PANELS; i++) {
      const __m512 scale = _mm512_load_ps(b + i * stride + kBlock * kPanel);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        float* const to = c + r * width + i * kPanel;
        const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[r][i]), scale);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(product, _mm512_set1_ps(scales[r]), _mm512_loadu_ps(to)));
      }
    }
  }
}

// clang-format off
template <int PANELS>
constexpr decltype(&tile_of<1, PANELS>) kTiles[] = {
    nullptr,             &tile_of<1, PANELS>, &tile_of<2, PANELS>, &tile_of<3, PANELS>,  &tile_of<4, PANELS>,
    &tile_of<5, PANELS>, &tile_of<6, PANELS>, &tile_of<7, PANELS>, &tile_of<8, PANELS>,  &tile_of<9, PANELS>,
    &tile_of<10, PANELS>, &tile_of<11, PANELS>, &tile_of<12, PANELS>};
// clang-format on

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, int64_t,
              float* C) {
  const char* const a = static_cast<const char*>(tile);
  const char* const b = static_cast<const char*>(panels);
  const int64_t width = count * kPanel;
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) (*kTiles<2>[height])(a, b + i * stride, stride, k, C + i * kPanel, width);
  if (i < count) (*kTiles<1>[height])(a, b + i * stride, stride, k, C + i * kPanel, width);
}

const Implementation int8{gemm_4bit_int8, Isa::avx512_vnni,
                          Gemm{12, 1, kBlock, kElement, 4, &pack, &panel, nullptr, nullptr, &multiply, &finish, nullptr, nullptr}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
