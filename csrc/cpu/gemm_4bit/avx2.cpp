#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "avx2.h"
#include "../transpose_avx2.h"
#include "avx2_finish.h"
#include "avx2_panel.h"

template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, float* out) {
  for (int64_t r = 0; r < height; r++) {
    const T* const in = static_cast<const T*>(p.A) + (row + r) * p.lda;
    for (int64_t k = first; k < last; k += 8) {
      const int64_t count = std::min<int64_t>(8, last - k);
      alignas(32) float values[8] = {};
      if (r < rows) _mm256_store_ps(values, load_some(in + k, count));
      for (int64_t i = 0; i < count; i++) out[(k + i) * height + r] = values[i];
    }
  }
}
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  float* const out = static_cast<float*>(tile);
  if (p.dtype == BNB_FLOAT32) return pack_as<float>(p, row, rows, height, first, last, out);
  if (p.dtype == BNB_FLOAT16) return pack_as<half>(p, row, rows, height, first, last, out);
  pack_as<bfloat16>(p, row, rows, height, first, last, out);
}

void panel(const PanelOfB& b, void* out) {
  const Planes planes(b.code);
  // Byte t of four dwords side by side.
  const __m256i by_byte = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for_each_dword(b, [&](int64_t row, int64_t k, __m256i dword, __m256 scale) {
    float* const values = static_cast<float*>(out) + k * kPanel + row;
    const __m256i bytes = _mm256_shuffle_epi8(dword, by_byte);
    __m256 high[4], low[4];
    planes.high(bytes, high);
    planes.low(bytes, low);
#pragma GCC unroll 4
    for (int t = 0; t < 4; t++) {
      _mm256_store_ps(values + 2 * t * kPanel, _mm256_mul_ps(high[t], scale));
      _mm256_store_ps(values + (2 * t + 1) * kPanel, _mm256_mul_ps(low[t], scale));
    }
  });
}

void columns(const ColumnsOfB& b, void* panels) {
  const Table table(b.code);
  const __m256i high_first = _mm256_setr_epi32(4, 0, 4, 0, 4, 0, 4, 0);
  const float* scales = b.scales;
  for (int64_t r = 0; r < b.rows; r++) {
    const uint8_t* const codes = b.codes + r * b.stride;
    prefetch_columns(b, codes);
    for (int64_t first = 0; first < b.panels; first += b.of_block) {
      const __m256 scale = _mm256_broadcast_ss(scales++);
      for (int64_t i = first, last = std::min(b.panels, first + b.of_block); i < last; i++) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i * kPanel / 2));
        const __m128i twice = _mm_unpacklo_epi8(bytes, bytes);
        float* const values = reinterpret_cast<float*>(static_cast<char*>(panels) + i * b.panel_stride) + r * kPanel;
        const auto put = [&](int at, __m128i eight) {
          const __m256i index = _mm256_srlv_epi32(_mm256_cvtepu8_epi32(eight), high_first);
          _mm256_store_ps(values + at, _mm256_mul_ps(table.at<0>(index), scale));
        };
        put(0, twice);
        put(8, _mm_srli_si128(twice, 8));
      }
    }
  }
}

template <int ROWS>
void tile_of(const float* a, const float* b, int64_t k, int64_t chain, float* c, int64_t width) {
  for (int64_t from = 0; from < k; from += chain) {
    const int64_t end = std::min(k, from + chain);
    __m256 sum[ROWS][2];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t j = from; j < end; j++, a += ROWS, b += kPanel) {
      const __m256 left = _mm256_load_ps(b), right = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        const __m256 x = _mm256_broadcast_ss(a + r);
        sum[r][0] = _mm256_fmadd_ps(x, left, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(x, right, sum[r][1]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        float* const to = c + r * width + 8 * i;
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[r][i]));
      }
  }
}

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k,
              int64_t chain, float* C) {
  // clang-format off
  constexpr decltype(&tile_of<1>) kTiles[] = {nullptr,     &tile_of<1>, &tile_of<2>, &tile_of<3>,
                                              &tile_of<4>, &tile_of<5>, &tile_of<6>};
  // clang-format on
  for (int64_t i = 0; i < count; i++)
    kTiles[height](static_cast<const float*>(tile), static_cast<const float*>(panels) + i * stride / 4, k, chain, C + i * kPanel,
                   count * kPanel);
}

constexpr Gemm kGemm{6, 1, 1, 4, 4, &pack, &panel, &columns, nullptr, &multiply, &finish, nullptr, nullptr, 0, kPart / 2};
const Implementation all{gemm_4bit, Isa::avx2, kGemm};
const Implementation for_bfloat16{gemm_4bit_bfloat16, Isa::avx2, kGemm};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
