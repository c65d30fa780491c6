#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "avx2.h"

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

// Rows become columns.
void transpose(__m256i (&r)[8]) {
  __m256i t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  __m256i u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2x128_si256(u[i], u[4 + i], 0x31);
  }
}

void panel(const PanelOfB& b, void* out) {
  const Planes planes(b.code);
  // Byte t of four dwords side by side.
  const __m256i by_byte = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int64_t half_of = 0; half_of < kPanel; half_of += 8) {
    for (int64_t from = 0; from < b.k; from += 64) {
      const int64_t dwords = std::min<int64_t>(8, (b.k - from) / 8);
      const __m256i mask = first_dwords(dwords);
      __m256i rows[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        const uint8_t* const codes = b.rows[half_of + i] + from / 2;
        rows[i] = _mm256_maskload_epi32(reinterpret_cast<const int*>(codes), mask);
        _mm_prefetch(reinterpret_cast<const char*>(codes + b.ahead), _MM_HINT_T1);
      }
      transpose(rows);
      alignas(32) __m256i columns[8];
      for (int i = 0; i < 8; i++) columns[i] = rows[i];
      for (int64_t i = 0; i < dwords; i++) {
        const int64_t k = from + 8 * i;
        const __m256 scale = _mm256_loadu_ps(b.scales + k / b.granule * kPanel + half_of);
        float* const values = static_cast<float*>(out) + k * kPanel + half_of;
        const __m256i bytes = _mm256_shuffle_epi8(columns[i], by_byte);
        __m256 high[4], low[4];
        planes.high(bytes, high);
        planes.low(bytes, low);
#pragma GCC unroll 4
        for (int t = 0; t < 4; t++) {
          _mm256_store_ps(values + 2 * t * kPanel, _mm256_mul_ps(high[t], scale));
          _mm256_store_ps(values + (2 * t + 1) * kPanel, _mm256_mul_ps(low[t], scale));
        }
      }
    }
  }
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

template <class T>
void finish_as(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  const T* const bias = static_cast<const T*>(p.bias);
  for (int64_t r = 0; r < rows; r++) {
    T* const out = static_cast<T*>(p.out) + (row + r) * p.ldc + n;
    int64_t i = 0;
    for (; i + 8 <= columns; i += 8) {
      __m256 sum = _mm256_loadu_ps(C + r * width + i);
      if (bias) sum = _mm256_add_ps(sum, load(bias + n + i));
      store(out + i, sum);
    }
    for (; i < columns; i++) out[i] = from_float<T>(C[r * width + i] + (bias ? to_float(bias[n + i]) : 0.0f));
  }
}
void finish(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  if (p.dtype == BNB_FLOAT32) return finish_as<float>(p, C, width, row, rows, n, columns);
  if (p.dtype == BNB_FLOAT16) return finish_as<half>(p, C, width, row, rows, n, columns);
  finish_as<bfloat16>(p, C, width, row, rows, n, columns);
}

constexpr Gemm kGemm{6, 1, 1, 4, 4, &pack, &panel, &columns, nullptr, &multiply, &finish, nullptr, nullptr};
const Implementation all{gemm_4bit, Isa::avx2, kGemm};
const Implementation for_bfloat16{gemm_4bit_bfloat16, Isa::avx2, kGemm};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
