// int8 activations by tiles: the numbers of avx512_vnni.cpp, to the last bit.
#include <immintrin.h>

#include <cmath>
#include <limits>

#include "gemm_4bit.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "../transpose_avx512.h"
#include "../tiles_amx.h"
#include "amx.h"
#include "amx_finish.h"
#include "int8_activations.h"
#include "avx512_quantized.h"

// Of a row of kBlock elements the odd ones come first: the low halves of their codes' bytes.
// Of each block [height / kRows][kBlock / 4][kRows][4], then the scales.
template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, char* tile) {
  for (int64_t k = first; k < last; k += kBlock) {
    char* const block = tile + k * height * kElement;
    float* const scales = reinterpret_cast<float*>(block + height * kBlock);
    for (int64_t from = 0; from < height; from += kRows) {
      __m512i quads[kRows];
      for (int r = 0; r < kRows; r++) {
        quads[r] = _mm512_setzero_si512();
        scales[from + r] = 0;
        if (from + r >= rows) continue;
        alignas(64) int8_t in_order[kBlock];
        scales[from + r] = quantized(static_cast<const T*>(p.A) + (row + from + r) * p.lda + k, in_order);
        const __m512i codes = _mm512_load_si512(in_order);
        const __m256i odd = _mm512_cvtepi16_epi8(_mm512_srli_epi16(codes, 8)), even = _mm512_cvtepi16_epi8(codes);
        quads[r] = _mm512_inserti64x4(_mm512_castsi256_si512(odd), even, 1);
      }
      transpose(quads);
      for (int j = 0; j < kRows; j++) _mm512_store_si512(block + from * kBlock + 64 * j, quads[j]);
    }
  }
}

// Of each block [kPanel][kBlock], then the scales.
void panel(const PanelOfB& b, void* out) {
  const __m512i table = _mm512_broadcast_i32x4(table_in_bytes(b.code, 0)), nibble = _mm512_set1_epi8(15);
  const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  const int64_t row_of_scales = b.granule / kBlock;
  for (int64_t k = 0, i = 0; k < b.k; k += kBlock, i++) {
    const float* const scales = b.scales + i / row_of_scales * kPanel;
    _mm512_store_ps(static_cast<char*>(out) + k * kPanel * kElement + kTileBytes, _mm512_loadu_ps(scales));
  }
  for (int r = 0; r < kPanel; r++) {
    char* to = static_cast<char*>(out) + r * kBlock;
    for (int64_t k = 0; k < b.k; k += kBlock, to += kBlock * kPanel * kElement) {
      const uint8_t* const codes = b.rows[r] + k / 2;
      if (k % (2 * kBlock) == 0) _mm_prefetch(reinterpret_cast<const char*>(codes + b.ahead), _MM_HINT_T1);
      const __m512i twice = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
      _mm512_store_si512(to, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srlv_epi16(twice, shift), nibble)));
    }
  }
}

// kRows rows of A, whose scales are at `scales` of the first block, with one panel.
void tile_of(const char* a, const char* scales, int64_t height, const char* b, int64_t k, float* c) {
  constexpr int kAtOnce = 4;
  constexpr int64_t kRight = kPanel * kBlock * kElement;
  const int64_t left = height * kBlock * kElement;
  __m512 sums[kPanel];
#pragma GCC unroll 16
  for (int r = 0; r < kPanel; r++) sums[r] = _mm512_load_ps(c + r * kRows);
  for (int64_t blocks = k / kBlock; blocks > 0; blocks -= kAtOnce) {
    alignas(64) int32_t products[kAtOnce][kPanel * kRows];
    const int count = static_cast<int>(std::min<int64_t>(kAtOnce, blocks));
    asm volatile("" ::: "memory");  // the intrinsics do not say what they read and write
    // Each block's product is in a tile of its own: each has its scales.
    const auto load_operands = [&](int i) {
      if (i % 2) {
        _tile_loadd(5, b + i * kRight, 64);
        _tile_loadd(7, a + i * left, 64);
      } else {
        _tile_loadd(4, b + i * kRight, 64);
        _tile_loadd(6, a + i * left, 64);
      }
    };
    _tile_zero(0);
    load_operands(0);
    _tile_dpbssd(0, 4, 6);
    if (count > 1) {
      _tile_zero(1);
      load_operands(1);
      _tile_dpbssd(1, 5, 7);
    }
    if (count > 2) {
      _tile_zero(2);
      load_operands(2);
      _tile_dpbssd(2, 4, 6);
    }
    if (count > 3) {
      _tile_zero(3);
      load_operands(3);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, products[0], 64);
    if (count > 1) _tile_stored(1, products[1], 64);
    if (count > 2) _tile_stored(2, products[2], 64);
    if (count > 3) _tile_stored(3, products[3], 64);
    asm volatile("" ::: "memory");
    for (int i = 0; i < count; i++, a += left, scales += left, b += kRight) {
      const __m512 row_scales = _mm512_load_ps(scales);
      const float* const column_scales = reinterpret_cast<const float*>(b + kTileBytes);
#pragma GCC unroll 16
      for (int r = 0; r < kPanel; r++) {
        const __m512 product = _mm512_cvtepi32_ps(_mm512_load_si512(products[i] + r * kRows));
        sums[r] = _mm512_fmadd_ps(_mm512_mul_ps(product, _mm512_set1_ps(column_scales[r])), row_scales, sums[r]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kPanel; r++) _mm512_store_ps(c + r * kRows, sums[r]);
}

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, int64_t,
              float* C) {
  const char* const a = static_cast<const char*>(tile);
  const char* const b = static_cast<const char*>(panels);
  const int64_t width = count * kPanel;
  for (int64_t i = 0; i < count; i++)
    for (int64_t from = 0; from < height; from += kRows)
      tile_of(a + from * kBlock, a + height * kBlock + from * 4, height, b + i * stride, k, C + from * width + i * kPanel * kRows);
}

const Implementation int8{
    gemm_4bit_int8, Isa::amx,
    Gemm{32, 16, kBlock, kElement, 16, &pack, &panel, nullptr, nullptr, &multiply, &finish_blocks, &begin, &end}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
