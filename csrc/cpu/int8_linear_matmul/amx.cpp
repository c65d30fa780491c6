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

#include "kernel.h"

#include "vnni.h"
// For few rows: a tile would be nearly empty.
struct Vectors : Bytes {
  static BNB_INLINE void prepare(Words x, Words (&parts)[1]) { parts[0] = _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return _mm512_dpbusd_epi32(sums, b, a); }
};
// Tiles multiply int8 by int8.
struct Signed {
  static constexpr int kParts = 1, kOffset = 0;
  static BNB_INLINE void prepare(Words x, Words (&parts)[1]) { parts[0] = x; }
};

// What a tile register holds: rows of so many bytes.
struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Two tiles of up to 16 rows of A by two of 16 columns of B. A block: [words along k / 16][height] of 64 bytes, then the
// outliers [n_columns][height].
struct Tiles {
  static constexpr int kHeight = 32;
  static constexpr int64_t kGroupBytes = 1200 << 10;  // of the 2 MiB of every CPU with tiles

  static void pack(const Product& p, const PackedRows& rows, int64_t first_block, int64_t last_block) {
    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t first = rows.first + block * rows.height, height = std::min(rows.height, rows.last - first);
      int32_t* const packed = rows.data + block * rows.height * rows.words;
      const int64_t words = padded_words(p.k);
      for (int64_t r = 0; r < height; r++) {
        const int8_t* const row = p.A + (first + r) * p.k;
        for (int64_t w = 0; w < words; w += kWide)
          store_words(packed + w * height + r * kWide, load_bytes(row + 4 * w, p.k - 4 * w));
      }
      pack_outliers(p, first, height, packed + height * words);
    }
  }

  static void configure(int64_t height) {
    thread_local int64_t configured = 0;
    if (height == 0) {
      if (configured) _tile_release();
    } else if (height != configured) {
      Config config;
      const auto upper = static_cast<uint8_t>(std::min<int64_t>(16, height)), lower = static_cast<uint8_t>(height - upper);
      const auto set = [&](int tile, uint8_t tile_rows) { config.row_bytes[tile] = tile_rows ? 64 : 0, config.rows[tile] = tile_rows; };
      set(0, upper), set(1, upper), set(4, upper);
      set(2, lower), set(3, lower), set(5, lower);
      set(6, 16), set(7, 16);
      _tile_loadconfig(&config);
    }
    configured = height;
  }

  static const int32_t* block(const Product& p, const int32_t* packed, int64_t height, const Strip& s, int32_t* sums, Ahead& ahead,
                              int64_t calls) {
    configure(height);
    const int64_t words = padded_words(p.k), steps = words / kWide;
    const int fetch = ahead.lines > 0 ? static_cast<int>(ceil_div(ahead.lines, std::max<int64_t>(1, calls * steps))) : 0;
    const int32_t* a = packed;
    const char* b = s.words;
    constexpr int kStride = kColumns * 4;
    asm volatile("" ::: "memory");  // the intrinsics do not say that they read memory
    _tile_zero(0);
    _tile_zero(1);
    if (height > 16) {
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t i = 0; i < steps; i++, a += height * kWide, b += kWide * kStride) {
        for (int f = 0; f < fetch; f++) ahead.step();
        _tile_loadd(6, b, kStride);
        _tile_loadd(7, b + 64, kStride);
        _tile_loadd(4, a, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, a + 16 * kWide, 64);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
      _tile_stored(2, sums + 16 * kColumns, kStride);
      _tile_stored(3, sums + 16 * kColumns + kWide, kStride);
    } else {
      for (int64_t i = 0; i < steps; i++, a += height * kWide, b += kWide * kStride) {
        for (int f = 0; f < fetch; f++) ahead.step();
        _tile_loadd(6, b, kStride);
        _tile_loadd(7, b + 64, kStride);
        _tile_loadd(4, a, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
      }
    }
    _tile_stored(0, sums, kStride);
    _tile_stored(1, sums + kWide, kStride);
    return packed + height * words;
  }

  // A thread that holds tiles is slow to switch.
  static void done() { configure(0); }
};

const Implementation implementation{int8_product, Isa::amx, kernels_of<Signed, Tiles, Vectors>()};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
