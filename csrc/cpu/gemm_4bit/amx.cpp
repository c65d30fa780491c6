#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_columns.h"
#include "../transpose_avx512.h"
#include "avx512_panel.h"
#include "../tiles_amx.h"
#include "amx.h"
#include "bfloat16.h"

// A row of a tile holds kStep bfloat16 values. kBlock elements of K go into two tiles, in the order in which their codes
// are looked up: element 4 i + kOrder[j] of a block is element 16 j + i of the two rows.
constexpr int kStep = 32, kBlock = 64;
constexpr int kOrder[] = {1, 0, 3, 2};

struct alignas(64) Order {
  uint16_t at[kBlock];
};
constexpr Order order() {
  Order o{};
  for (int j = 0; j < 4; j++)
    for (int i = 0; i < 16; i++) o.at[16 * j + i] = static_cast<uint16_t>(4 * i + kOrder[j]);
  return o;
}
constexpr Order kPlaces = order();

// [k / kStep][height / kRows][kStep / 2][kRows][2]
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  uint16_t* const out = static_cast<uint16_t*>(tile);
  const auto lanes = [](int64_t n) { return n >= 32 ? ~__mmask32{0} : n <= 0 ? __mmask32{0} : (__mmask32{1} << n) - 1; };
  for (int64_t k = first; k < last; k += kBlock) {
    const __mmask32 low = lanes(last - k), high = lanes(last - k - 32);
    for (int64_t block = 0; block < height; block += kRows) {
      __m512i left[kRows], right[kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        left[r] = right[r] = _mm512_setzero_si512();
        if (block + r >= rows) continue;
        const uint16_t* const in = static_cast<const uint16_t*>(p.A) + (row + block + r) * p.lda + k;
        const __m512i a = _mm512_maskz_loadu_epi16(low, in), b = _mm512_maskz_loadu_epi16(high, in + 32);
        left[r] = _mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces.at), b);
        right[r] = _mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces.at + 32), b);
      }
      transpose(left);
      transpose(right);
      uint16_t* const to = out + k * height + block * kStep;
#pragma GCC unroll 16
      for (int j = 0; j < kRows; j++) {
        _mm512_store_si512(to + 32 * j, left[j]);
        _mm512_store_si512(to + kStep * height + 32 * j, right[j]);
      }
    }
  }
}

// [k / kStep][kPanel][kStep]. A weight is code * scale, rounded once: CUDA's. It is the block's table that is rounded.
void panel(const PanelOfB& b, void* out) {
  const __m512 code = _mm512_loadu_ps(b.code);
  // Of each four codes those that are even and odd elements, twice: look-ups read the low bits of their index.
  const __m512i first = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
  const auto table_of = [&](float scale) {
    const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(code, _mm512_set1_ps(scale)));
    return _mm512_broadcast_i64x4(rounded);
  };
  for (int r = 0; r < kPanel; r++) {
    char* const row = static_cast<char*>(out) + r * 64;
    const uint8_t* const codes = b.rows[r];
    const float* scales = b.scales + r;
    int64_t k = 0;
    if (b.granule >= kBlock) {
      for (int64_t left = 0; k + kBlock <= b.k; k += kBlock) {
        if (k % (2 * kBlock) == 0) _mm_prefetch(reinterpret_cast<const char*>(codes + k / 2 + b.ahead), _MM_HINT_T1);
        if (left == 0) left = b.granule, scales += k ? kPanel : 0;
        left -= std::min<int64_t>(left, kBlock);
        const __m512i table = table_of(*scales);
        const __m512i dwords = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k / 2)));
        char* const to = row + k / kStep * kTileBytes;
        _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_srlv_epi16(dwords, first), table));
        _mm512_store_si512(to + kTileBytes, _mm512_permutexvar_epi16(_mm512_srlv_epi16(dwords, second), table));
      }
    }
    for (; k < b.k; k += kBlock) {  // several scales in a block, or a last one that is not full
      const int64_t count = std::min<int64_t>(kBlock, b.k - k);
      const __m256i half_of = _mm256_maskz_loadu_epi32(static_cast<__mmask8>((1 << count / 8) - 1), codes + k / 2);
      const __m512i dwords = _mm512_broadcast_i64x4(half_of);
      __m512i low = _mm512_setzero_si512(), high = low;
      const int64_t step = std::min<int64_t>(b.granule, kBlock);
      for (int64_t i = 0; i < count; i += step) {
        const __m512i table = table_of(b.scales[(k + i) / b.granule * kPanel + r]);
        const uint32_t words = (1u << std::min(count, i + step) / 4) - (1u << i / 4);
        const __mmask32 mask = words << 16 | words;
        low = _mm512_mask_permutexvar_epi16(low, mask, _mm512_srlv_epi16(dwords, first), table);
        high = _mm512_mask_permutexvar_epi16(high, mask, _mm512_srlv_epi16(dwords, second), table);
      }
      char* const to = row + k / kStep * kTileBytes;
      _mm512_store_si512(to, low);
      _mm512_store_si512(to + kTileBytes, high);
    }
  }
}

void convert(const float* values, int64_t k, void* out) {
  char* to = static_cast<char*>(out);
  const __m512i low = _mm512_load_si512(kPlaces.at), high = _mm512_load_si512(kPlaces.at + kStep);
  const auto row = [&](int64_t i) { return i < k ? _mm512_loadu_ps(values + i * kPanel) : _mm512_setzero_ps(); };
  for (int64_t from = 0; from < k; from += kBlock, to += 2 * kTileBytes) {
    __m512i halves[2][kPanel];  // of the block, first by pairs of k, then by columns
    for (int h = 0; h < 2; h++) {
      for (int j = 0; j < kPanel; j++) {
        const int64_t at = from + h * kStep + 2 * j;
        halves[h][j] = pairs_of(row(at), row(at + 1));
      }
      transpose(halves[h]);
    }
    for (int r = 0; r < kPanel; r++) {
      _mm512_store_si512(to + r * 64, _mm512_permutex2var_epi16(halves[0][r], low, halves[1][r]));
      _mm512_store_si512(to + kTileBytes + r * 64, _mm512_permutex2var_epi16(halves[0][r], high, halves[1][r]));
    }
  }
}

// kRows or twice as many rows of A with one panel or two: sums in tiles 0 to 3, panels in 4 and 5, A in 6 and 7.
template <int BLOCKS, int PANELS>
void tiles_of(const uint16_t* a, int64_t height, const char* b, int64_t stride, int64_t k, float* c, int64_t width) {
  asm volatile("" ::: "memory");  // the intrinsics do not say what they read and write
  float* const c1 = c + kRows * width;
  constexpr int kTile = kRows * kPanel;
  _tile_loadd(0, c, 64);
  if constexpr (PANELS == 2) _tile_loadd(1, c + kTile, 64);
  if constexpr (BLOCKS == 2) _tile_loadd(2, c1, 64);
  if constexpr (BLOCKS == 2 && PANELS == 2) _tile_loadd(3, c1 + kTile, 64);
  for (int64_t j = 0; j < k; j += kStep, a += kStep * height, b += kTileBytes) {
    _tile_loadd(4, b, 64);
    _tile_loadd(6, a, 64);
    if constexpr (PANELS == 2) _tile_loadd(5, b + stride, 64);
    if constexpr (BLOCKS == 2) _tile_loadd(7, a + kRows * kStep, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (PANELS == 2) _tile_dpbf16ps(1, 5, 6);
    if constexpr (BLOCKS == 2) _tile_dpbf16ps(2, 4, 7);
    if constexpr (BLOCKS == 2 && PANELS == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  if constexpr (PANELS == 2) _tile_stored(1, c + kTile, 64);
  if constexpr (BLOCKS == 2) _tile_stored(2, c1, 64);
  if constexpr (BLOCKS == 2 && PANELS == 2) _tile_stored(3, c1 + kTile, 64);
  asm volatile("" ::: "memory");
}

void multiply(const void* tile, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, float* C) {
  const uint16_t* const a = static_cast<const uint16_t*>(tile);
  const char* const b = static_cast<const char*>(panels);
  const int64_t width = count * kPanel;
  for (int64_t i = 0; i < count; i += 2) {
    const auto run =
        height == kRows ? (i + 1 < count ? &tiles_of<1, 2> : &tiles_of<1, 1>) : (i + 1 < count ? &tiles_of<2, 2> : &tiles_of<2, 1>);
    run(a, height, b + i * stride, stride, k, C + i * kPanel * kRows, width);
  }
}

const Implementation bfloat16_tiles{
    gemm_4bit_bfloat16, Isa::amx,
    Gemm{32, 16, kBlock, 2, 16, &pack, &panel, &columns, &convert, &multiply, &finish_blocks, &begin, &end}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
