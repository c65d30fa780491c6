#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AVX512_BF16_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_finish.h"
#include "../transpose_avx512.h"
#include "avx512_pack.h"
#include "avx512_panel.h"
#include "bfloat16.h"

// [k / 2][height][2]
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  const bfloat16* const in = static_cast<const bfloat16*>(p.A) + row * p.lda;
  pack_dwords(rows, height, first / 2, ceil_div(last, 2), tile, [&](int64_t r, int64_t pair) {
    return _mm512_maskz_loadu_epi16(first_words(last - 2 * pair), in + r * p.lda + 2 * pair);
  });
}

template <int ROWS, int PANELS>
void tile_of(const uint32_t* a, const uint32_t* b, int64_t stride, int64_t pairs, float* c, int64_t width) {
  __m512 sum[ROWS][PANELS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int i = 0; i < PANELS; i++) sum[r][i] = _mm512_loadu_ps(c + r * width + i * kPanel);
  for (int64_t j = 0; j < pairs; j++, a += ROWS, b += kPanel) {
    __m512i values[PANELS];
#pragma GCC unroll 2
    for (int i = 0; i < PANELS; i++) values[i] = _mm512_load_si512(b + i * stride);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const __m512i x = _mm512_set1_epi32(static_cast<int>(a[r]));
#pragma GCC unroll 2
      for (int i = 0; i < PANELS; i++) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], (__m512bh)x, (__m512bh)values[i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int i = 0; i < PANELS; i++) _mm512_storeu_ps(c + r * width + i * kPanel, sum[r][i]);
}

// clang-format off
template <int PANELS>
constexpr decltype(&tile_of<1, PANELS>) kTiles[] = {
    nullptr,             &tile_of<1, PANELS>, &tile_of<2, PANELS>,  &tile_of<3, PANELS>,  &tile_of<4, PANELS>,
    &tile_of<5, PANELS>, &tile_of<6, PANELS>, &tile_of<7, PANELS>,  &tile_of<8, PANELS>,  &tile_of<9, PANELS>,
    &tile_of<10, PANELS>, &tile_of<11, PANELS>, &tile_of<12, PANELS>, &tile_of<13, PANELS>, &tile_of<14, PANELS>};
// clang-format on

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, int64_t,
              float* C) {
  const uint32_t* const a = static_cast<const uint32_t*>(tile);
  const uint32_t* const b = static_cast<const uint32_t*>(panels);
  const int64_t dwords = stride / 4, width = count * kPanel;
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) (*kTiles<2>[height])(a, b + i * dwords, dwords, k / 2, C + i * kPanel, width);
  if (i < count) (*kTiles<1>[height])(a, b + i * dwords, dwords, k / 2, C + i * kPanel, width);
}

const Implementation bfloat16_pairs{gemm_4bit_bfloat16, Isa::avx512_bf16,
                                    Gemm{14, 1, 2, 2, 4, &pack, &panel_of_pairs<2>, &columns_of_pairs<1, 2>,
                                         &convert_to_pairs<1, 2>, &multiply, &finish, nullptr, nullptr, 8}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
