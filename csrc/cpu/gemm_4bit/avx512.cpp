#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_finish.h"
#include "../transpose_avx512.h"
#include "avx512_pack.h"
#include "avx512_panel.h"

template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  const T* const in = static_cast<const T*>(p.A) + row * p.lda;
  pack_dwords(rows, height, first, last, tile,
              [&](int64_t r, int64_t k) { return _mm512_castps_si512(load(in + r * p.lda + k, first_lanes(last - k))); });
}
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  if (p.dtype == BNB_FLOAT32) return pack_as<float>(p, row, rows, height, first, last, tile);
  if (p.dtype == BNB_FLOAT16) return pack_as<half>(p, row, rows, height, first, last, tile);
  pack_as<bfloat16>(p, row, rows, height, first, last, tile);
}

void panel(const PanelOfB& b, void* out) {
  const __m512 code = _mm512_loadu_ps(b.code);
  float* const values = static_cast<float*>(out);
  for_each_dword(b, [&](int64_t k, __m512i dword, __m512 scale) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {  // look-ups read the low bits of their index; a byte's high half comes first
      const __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(dword, 4 * (j ^ 1)), code);
      _mm512_store_ps(values + (k + j) * kPanel, _mm512_mul_ps(value, scale));
    }
  });
}

void columns(const ColumnsOfB& b, void* panels) {
  const __m512 code = _mm512_loadu_ps(b.code);
  const __m512i high_first = _mm512_set1_epi64(4);
  const float* scales = b.scales;
  for (int64_t r = 0; r < b.rows; r++) {
    const uint8_t* const codes = b.codes + r * b.stride;
    prefetch_columns(b, codes);
    for (int64_t first = 0; first < b.panels; first += b.of_block) {
      const __m512 table = _mm512_mul_ps(code, _mm512_set1_ps(*scales++));
      for (int64_t i = first, last = std::min(b.panels, first + b.of_block); i < last; i++) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i * kPanel / 2));
        const __m512i index = _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes)), high_first);
        char* const to = static_cast<char*>(panels) + i * b.panel_stride + r * 64;
        _mm512_store_ps(to, _mm512_permutexvar_ps(index, table));
      }
    }
  }
}

template <int ROWS, int PANELS>
void tile_of(const float* a, const float* b, int64_t stride, int64_t k, int64_t chain, float* c, int64_t width) {
  for (int64_t from = 0; from < k; from += chain) {
    const int64_t end = std::min(k, from + chain);
    __m512 sum[ROWS][PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) sum[r][i] = _mm512_setzero_ps();
    for (int64_t j = from; j < end; j++, a += ROWS, b += kPanel) {
      __m512 values[PANELS];
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) values[i] = _mm512_load_ps(b + i * stride);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int i = 0; i < PANELS; i++) sum[r][i] = _mm512_fmadd_ps(_mm512_set1_ps(a[r]), values[i], sum[r][i]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) {
        float* const to = c + r * width + i * kPanel;
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), sum[r][i]));
      }
  }
}

// clang-format off
template <int PANELS>
constexpr decltype(&tile_of<1, PANELS>) kTiles[] = {
    nullptr,             &tile_of<1, PANELS>, &tile_of<2, PANELS>,  &tile_of<3, PANELS>,  &tile_of<4, PANELS>,
    &tile_of<5, PANELS>, &tile_of<6, PANELS>, &tile_of<7, PANELS>,  &tile_of<8, PANELS>,  &tile_of<9, PANELS>,
    &tile_of<10, PANELS>, &tile_of<11, PANELS>, &tile_of<12, PANELS>, &tile_of<13, PANELS>, &tile_of<14, PANELS>};
// clang-format on

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k,
              int64_t chain, float* C) {
  const float* const a = static_cast<const float*>(tile);
  const float* b = static_cast<const float*>(panels);
  const int64_t floats = stride / 4, width = count * kPanel;
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) (*kTiles<2>[height])(a, b + i * floats, floats, k, chain, C + i * kPanel, width);
  if (i < count) (*kTiles<1>[height])(a, b + i * floats, floats, k, chain, C + i * kPanel, width);
}

constexpr Gemm kGemm{14, 1, 1, 4, 4, &pack, &panel, &columns, nullptr, &multiply, &finish, nullptr, nullptr, 8, kPart / 2};
const Implementation all{gemm_4bit, Isa::avx512, kGemm};
const Implementation for_bfloat16{gemm_4bit_bfloat16, Isa::avx512, kGemm};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
