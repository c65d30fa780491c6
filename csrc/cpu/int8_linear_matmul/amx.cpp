#include <immintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx512.h"
#include "../int8_lanes_avx512.h"
#include "words_avx512.h"
#include "../transpose_avx512.h"
#include "../dot_bytes_avx512.h"
#include "../tiles_amx.h"

#include "kernel.h"

#include "vnni.h"
// For few rows.
struct Vectors : Bytes {
  static BNB_INLINE void prepare(Words x, Words (&parts)[1]) { parts[0] = _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return dot_bytes(sums, b, a); }
};
// Tiles multiply int8 by int8.
struct Signed {
  static constexpr int kParts = 1, kOffset = 0;
};

// B is the left operand, as it is stored: a tile is kWide of its rows, and 64 bytes of each. A is the right one. So the
// product of tiles is the result's transpose.
constexpr int kTile = kWide, kTileWords = kTile * kTile;
constexpr int64_t kStepBytes = 64;
// Strips whose blocks of A follow each other: they stay in the second cache, of the 2 MiB of every CPU with tiles.
constexpr int64_t kGroupBytes = 1 << 20;

// A block: [words along k / 16][kTile rows or twice as many][words along k][kTile rows], then the outliers
// [n_columns][height]. Rows that are missing are zeros.
void pack(const Product& p, const PackedRows& rows, int64_t first_block, int64_t last_block) {
  const int64_t words = padded_words(p.k);
  for (int64_t block = first_block; block < last_block; block++) {
    const int64_t first = rows.first + block * rows.height, height = std::min(rows.height, rows.last - first);
    const int64_t tiles = ceil_div(height, kTile);
    int32_t* const packed = rows.data + block * rows.height * rows.words;
    for (int64_t tile = 0; tile < tiles; tile++)
      for (int64_t w = 0; w < words; w += kWide) {
        const int8_t* const from = p.A + (first + tile * kTile) * p.k + 4 * w;
        Words x[kWide];
        for (int r = 0; r < kTile; r++)
          x[r] = tile * kTile + r < height ? load_bytes(from + r * p.k, p.k - 4 * w) : broadcast_word(0);
        transpose(x);
        int32_t* const to = packed + (w / kWide * tiles + tile) * kTileWords;
#pragma GCC unroll 16
        for (int i = 0; i < kWide; i++) store_words(to + i * kWide, x[i]);
      }
    pack_outliers(p, first, height, packed + tiles * kTile * words);
  }
}

// A strip as tiles are loaded from it: `steps` whole ones from its rows, `stride` bytes apart, and the rest, padded.
struct Rows {
  const char* rows;
  int64_t stride, steps;
  const char* rest;  // null if there is none
  int64_t rest_stride;
};

// What is copied of a strip: the rest, or, where columns are missing, all of it.
int64_t rest_bytes(const Product& p) { return p.k % kStepBytes ? kColumns * kStepBytes : 0; }
int64_t strip_bytes(const Product& p) { return p.n % kColumns ? kColumns * 4 * padded_words(p.k) : 0; }

void copy_strip(const Product& p, const Strip& s, char* strip) {
  const int8_t* const rows = p.B + s.first * p.k;
  if (s.count < kColumns) {
    const int64_t stride = 4 * padded_words(p.k);
    for (int c = 0; c < kColumns; c++)
      for (int64_t at = 0; at < stride; at += kStepBytes)
        store_words(strip + c * stride + at, c < s.count ? load_bytes(rows + c * p.k + at, p.k - at) : broadcast_word(0));
  } else if (const int64_t rest = p.k % kStepBytes) {
    for (int c = 0; c < kColumns; c++) store_words(s.words + c * kStepBytes, load_bytes(rows + (c + 1) * p.k - rest, rest));
  }
}

// After copy_strip.
Rows rows_of(const Product& p, const Strip& s, const char* strip) {
  const int64_t stride = 4 * padded_words(p.k);
  if (s.count < kColumns) return {strip, stride, stride / kStepBytes, nullptr, 0};
  const char* const rows = reinterpret_cast<const char*>(p.B + s.first * p.k);
  return {rows, p.k, p.k / kStepBytes, p.k % kStepBytes ? s.words : nullptr, kStepBytes};
}

// Sums [TILES * kTile][kColumns] of a block with a strip. From `fetch` on kColumns lines a step are fetched meanwhile.
template <int TILES>
void multiply_tiles(const int32_t* a, const Rows& b, const char* fetch, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (TILES == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  const auto step = [&](const char* rows, int64_t stride) __attribute__((always_inline)) {
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    _tile_loadd(4, rows, stride);
    _tile_loadd(6, a, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, rows + kTile * stride, stride);
    _tile_dpbssd(1, 5, 6);
    if (TILES == 2) {
      _tile_loadd(7, a + kTileWords, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
    }
    a += TILES * kTileWords;
  };
  if (fetch) {
    for (int64_t i = 0; i < b.steps; i++, fetch += kColumns * 64) {
#pragma GCC unroll 32
      for (int line = 0; line < kColumns; line++) __builtin_prefetch(fetch + line * 64, 0, 2);
      step(b.rows + i * kStepBytes, b.stride);
    }
  } else {
    for (int64_t i = 0; i < b.steps; i++) step(b.rows + i * kStepBytes, b.stride);
  }
  if (b.rest) step(b.rest, b.rest_stride);
  alignas(64) int32_t products[2 * TILES][kTileWords];
  _tile_stored(0, products[0], 64);
  _tile_stored(1, products[1], 64);
  if (TILES == 2) {
    _tile_stored(2, products[2], 64);
    _tile_stored(3, products[3], 64);
  }
  asm volatile("" ::: "memory");
  for (int tile = 0; tile < 2 * TILES; tile++) {
    Words x[kWide];
#pragma GCC unroll 16
    for (int i = 0; i < kWide; i++) x[i] = load_words(products[tile] + i * kTile);
    transpose(x);
    int32_t* const to = sums + tile / 2 * kTile * kColumns + tile % 2 * kTile;
#pragma GCC unroll 16
    for (int i = 0; i < kWide; i++) store_words(to + i * kColumns, x[i]);
  }
}

bool run_tiles(const Product& p, const PackedRows& rows, int64_t first_block, int64_t last_block, int64_t first_strip,
               int64_t last_strip) {
  const int64_t bytes = rest_bytes(p) + scales_bytes(p);
  const int64_t group = std::min(last_strip - first_strip, std::max<int64_t>(1, kGroupBytes / (kColumns * p.k + bytes)));
  auto* const memory = static_cast<char*>(thread_memory(Use::strips, group * bytes + strip_bytes(p)));
  if (!memory) return false;
  char* const copy = memory + group * bytes;
  alignas(64) int32_t sums[2 * kTile * kColumns];
  _tile_loadconfig(&kConfig);
  for (int64_t first = first_strip; first < last_strip; first += group) {
    const int64_t last = std::min(last_strip, first + group);
    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t row = rows.first + block * rows.height, height = std::min(rows.height, rows.last - row);
      const int32_t* const packed = rows.data + block * rows.height * rows.words;
      const int64_t tiles = ceil_div(height, kTile);
      const int32_t* const outliers = packed + tiles * kTile * padded_words(p.k);
      for (int64_t strip = first; strip < last; strip++) {
        const Strip s = strip_at(p, strip, memory + (strip - first) * bytes, rest_bytes(p));
        const char* fetch = nullptr;
        if (block == first_block) {  // later ones find the strip in the cache, and what is copied of it
          pack_scales(p, s);
          copy_strip(p, s, copy);
          if (strip + 1 < last_strip) fetch = reinterpret_cast<const char*>(p.B + (s.first + kColumns) * p.k);
        }
        const Rows b = rows_of(p, s, copy);
        (tiles == 2 ? multiply_tiles<2> : multiply_tiles<1>)(packed, b, fetch, sums);
        finish(p, sums, row, height, s, outliers);
      }
    }
  }
  _tile_release();  // a thread that holds tiles is slow to switch
  return true;
}

const Implementation implementation{int8_product, Isa::amx,
                                    ProductKernels{2 * kTile, kTile, kColumns, kFewHeight, &words_of<Signed>, &pack, &run_tiles,
                                                   &pack_few<Vectors>, &run_few<Vectors>}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
