#include <immintrin.h>

#include <cstring>

#include "gemm_4bit.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_panel.h"
#include "bfloat16.h"

constexpr int kRows = 16, kStep = 32;  // of a tile register: rows, and bfloat16 values of a row

// [k / 32][height][32]
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  uint16_t* const out = static_cast<uint16_t*>(tile);
  for (int64_t k = first; k < last; k += kStep) {
    const int64_t count = std::min<int64_t>(kStep, last - k);
    const __mmask32 mask = count == kStep ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    for (int64_t r = 0; r < height; r++) {
      const uint16_t* const in = static_cast<const uint16_t*>(p.A) + (row + r) * p.lda + k;
      _mm512_store_si512(out + k * height + r * kStep, r < rows ? _mm512_maskz_loadu_epi16(mask, in) : _mm512_setzero_si512());
    }
  }
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Constant data: the compiler does not know that all of it is read, and would leave out what it writes to a local one.
constexpr TileConfig kConfig;

void begin() { _tile_loadconfig(&kConfig); }
void end() { _tile_release(); }

// 16 or 32 rows of A with one panel or two: sums in tiles 0 to 3, A in 4 and 5, B in 6 and 7.
template <int TILES, int PANELS>
void tiles_of(const uint16_t* a, int64_t height, const char* b, int64_t stride, int64_t k, float* c, int64_t width) {
  asm volatile("" ::: "memory");  // the intrinsics do not say what they read and write
  float* const c1 = c + kRows * width;
  const int64_t row = width * 4;
  _tile_loadd(0, c, row);
  if constexpr (PANELS == 2) _tile_loadd(1, c + kPanel, row);
  if constexpr (TILES == 2) _tile_loadd(2, c1, row);
  if constexpr (TILES == 2 && PANELS == 2) _tile_loadd(3, c1 + kPanel, row);
  for (int64_t j = 0; j < k; j += kStep, a += kStep * height, b += kStep / 2 * 64) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    if constexpr (TILES == 2) _tile_loadd(5, a + kRows * kStep, 64);
    if constexpr (PANELS == 2) _tile_loadd(7, b + stride, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (TILES == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (PANELS == 2) _tile_dpbf16ps(1, 4, 7);
    if constexpr (TILES == 2 && PANELS == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, row);
  if constexpr (PANELS == 2) _tile_stored(1, c + kPanel, row);
  if constexpr (TILES == 2) _tile_stored(2, c1, row);
  if constexpr (TILES == 2 && PANELS == 2) _tile_stored(3, c1 + kPanel, row);
  asm volatile("" ::: "memory");
}

void multiply(const void* tile, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k, float* C) {
  const uint16_t* const a = static_cast<const uint16_t*>(tile);
  const char* const b = static_cast<const char*>(panels);
  const int64_t width = count * kPanel;
  for (int64_t i = 0; i < count; i += 2) {
    const auto run = height == kRows ? (i + 1 < count ? &tiles_of<1, 2> : &tiles_of<1, 1>)
                                     : (i + 1 < count ? &tiles_of<2, 2> : &tiles_of<2, 1>);
    run(a, height, b + i * stride, stride, k, C + i * kPanel, width);
  }
}

const Implementation bfloat16_tiles{
    gemm_4bit_bfloat16, Isa::amx,
    Gemm{32, 16, kStep, 2, &pack, &panel_of_pairs<kStep>, &convert_to_pairs<kStep>, &multiply, &finish, &begin, &end}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
