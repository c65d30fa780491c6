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

// ---- parts ----------------------------------------------------------------------------------------------------------
// A value of more bits than bfloat16's is the sum of PARTS that are bfloat16: two hold all of a float16, and 16 bits of a weight.
// Their products, but for those that are too small to matter, are summed up in float32, the smallest first. With one part,
// activations are bfloat16, and weights are rounded once, as CUDA's.
template <int PARTS>
constexpr auto kProducts = nullptr;  // {part of A, part of B}
template <>
constexpr int kProducts<1>[][2] = {{0, 0}};
template <>
constexpr int kProducts<2>[][2] = {{1, 0}, {0, 1}, {0, 0}};

// The largest part first. What is not finite is the last alone, which meets but the first of the other side: inf * 0 is no number.
// So inf * inf is none either, here.
template <int PARTS>
void split(__m512 x, __m256i (&part)[PARTS]) {
  static_assert(PARTS <= 2);
  if constexpr (PARTS == 2) {
    constexpr int kNotFinite = 0x99;
    const __m512 most = _mm512_set1_ps(0x1.fep127f), least = _mm512_set1_ps(-0x1.fep127f);
    const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(x, kNotFinite));
    const __m512 near = _mm512_maskz_max_ps(finite, _mm512_min_ps(x, most), least);
    part[0] = (__m256i)_mm512_cvtneps_pbh(near);
    x = _mm512_mask_sub_ps(x, finite, x, widened(part[0]));
  }
  part[PARTS - 1] = (__m256i)_mm512_cvtneps_pbh(x);
}

// 32 elements of a row of A, of which those before `count` are there.
template <int PARTS>
void load_parts(const bfloat16* in, int64_t count, __m512i (&part)[PARTS]) {
  static_assert(PARTS == 1);
  part[0] = _mm512_maskz_loadu_epi16(first_words(count), in);
}
template <int PARTS, class T>
void load_parts(const T* in, int64_t count, __m512i (&part)[PARTS]) {
  __m256i low[PARTS], high[PARTS];
  split(load(in, first_lanes(std::max<int64_t>(0, count))), low);
  split(load(in + 16, first_lanes(std::max<int64_t>(0, count - 16))), high);
#pragma GCC unroll 2
  for (int i = 0; i < PARTS; i++) part[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low[i]), high[i], 1);
}

int64_t filled(int64_t k) { return ceil_div(k, kBlock) * kBlock; }

// For each step of K that is packed [PARTS][k / kStep][height / kRows][kStep / 2][kRows][2]
template <class T, int PARTS>
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  uint16_t* const out = static_cast<uint16_t*>(tile) + first * height * PARTS;
  const int64_t part_size = filled(last - first) * height;
  for (int64_t k = first; k < last; k += kBlock) {
    for (int64_t block = 0; block < height; block += kRows) {
      __m512i left[PARTS][kRows], right[PARTS][kRows];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        __m512i a[PARTS] = {}, b[PARTS] = {};
        if (block + r < rows) {
          const T* const in = static_cast<const T*>(p.A) + (row + block + r) * p.lda + k;
          load_parts(in, last - k, a);
          load_parts(in + 32, last - k - 32, b);
        }
#pragma GCC unroll 2
        for (int i = 0; i < PARTS; i++) {
          left[i][r] = _mm512_permutex2var_epi16(a[i], _mm512_load_si512(kPlaces.at), b[i]);
          right[i][r] = _mm512_permutex2var_epi16(a[i], _mm512_load_si512(kPlaces.at + 32), b[i]);
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < PARTS; i++) {
        transpose(left[i]);
        transpose(right[i]);
        uint16_t* const to = out + i * part_size + (k - first) * height + block * kStep;
#pragma GCC unroll 16
        for (int j = 0; j < kRows; j++) {
          _mm512_store_si512(to + 32 * j, left[i][j]);
          _mm512_store_si512(to + kStep * height + 32 * j, right[i][j]);
        }
      }
    }
  }
}

// [PARTS][k / kStep][kPanel][kStep]. It is the block's table of weights, code * scale, that is split or rounded.
template <int PARTS>
void panel(const PanelOfB& b, void* out) {
  const __m512 code = _mm512_loadu_ps(b.code);
  // Of each four codes those that are even and odd elements, twice: look-ups read the low bits of their index.
  const __m512i first = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
  const int64_t part_bytes = filled(b.k) / kStep * kTileBytes;
  __m512i table[PARTS];
  const auto look_up_in = [&](float scale) {
    __m256i parts[PARTS];
    split(_mm512_mul_ps(code, _mm512_set1_ps(scale)), parts);
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) table[i] = _mm512_broadcast_i64x4(parts[i]);
  };
  for (int r = 0; r < kPanel; r++) {
    char* const row = static_cast<char*>(out) + r * 64;
    const uint8_t* const codes = b.rows[r];
    const float* scales = b.scales + r;
    int64_t k = 0;
    if (b.granule >= kBlock) {
      for (int64_t left = 0; k + kBlock <= b.k; k += kBlock) {
        if (k % (2 * kBlock) == 0) _mm_prefetch(reinterpret_cast<const char*>(codes + k / 2 + b.ahead), _MM_HINT_T1);
        if (left == 0) {
          left = b.granule, scales += k ? kPanel : 0;
          look_up_in(*scales);
        }
        left -= std::min<int64_t>(left, kBlock);
        const __m512i dwords = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + k / 2)));
        char* const to = row + k / kStep * kTileBytes;
#pragma GCC unroll 2
        for (int i = 0; i < PARTS; i++) {
          _mm512_store_si512(to + i * part_bytes, _mm512_permutexvar_epi16(_mm512_srlv_epi16(dwords, first), table[i]));
          _mm512_store_si512(to + i * part_bytes + kTileBytes,
                             _mm512_permutexvar_epi16(_mm512_srlv_epi16(dwords, second), table[i]));
        }
      }
    }
    for (; k < b.k; k += kBlock) {  // several scales in a block, or a last one that is not full
      const int64_t count = std::min<int64_t>(kBlock, b.k - k);
      const __m256i half_of = _mm256_maskz_loadu_epi32(static_cast<__mmask8>((1 << count / 8) - 1), codes + k / 2);
      const __m512i dwords = _mm512_broadcast_i64x4(half_of);
      __m512i low[PARTS] = {}, high[PARTS] = {};
      const int64_t step = std::min<int64_t>(b.granule, kBlock);
      for (int64_t i = 0; i < count; i += step) {
        look_up_in(b.scales[(k + i) / b.granule * kPanel + r]);
        const uint32_t words = (1u << std::min(count, i + step) / 4) - (1u << i / 4);
        const __mmask32 mask = words << 16 | words;
#pragma GCC unroll 2
        for (int j = 0; j < PARTS; j++) {
          low[j] = _mm512_mask_permutexvar_epi16(low[j], mask, _mm512_srlv_epi16(dwords, first), table[j]);
          high[j] = _mm512_mask_permutexvar_epi16(high[j], mask, _mm512_srlv_epi16(dwords, second), table[j]);
        }
      }
      char* const to = row + k / kStep * kTileBytes;
#pragma GCC unroll 2
      for (int i = 0; i < PARTS; i++) {
        _mm512_store_si512(to + i * part_bytes, low[i]);
        _mm512_store_si512(to + i * part_bytes + kTileBytes, high[i]);
      }
    }
  }
}

template <int PARTS>
void convert(const float* values, int64_t k, void* out) {
  char* to = static_cast<char*>(out);
  const __m512i low = _mm512_load_si512(kPlaces.at), high = _mm512_load_si512(kPlaces.at + kStep);
  const int64_t part_bytes = filled(k) / kStep * kTileBytes;
  const auto row = [&](int64_t i) { return i < k ? _mm512_loadu_ps(values + i * kPanel) : _mm512_setzero_ps(); };
  for (int64_t from = 0; from < k; from += kBlock, to += 2 * kTileBytes) {
    __m512i halves[PARTS][2][kPanel];  // of the block, first by pairs of k, then by columns
    for (int h = 0; h < 2; h++)
      for (int j = 0; j < kPanel; j++) {
        const int64_t at = from + h * kStep + 2 * j;
        if constexpr (PARTS == 1) {
          halves[0][h][j] = pairs_of(row(at), row(at + 1));
        } else {
          __m256i even[PARTS], odd[PARTS];
          split(row(at), even);
          split(row(at + 1), odd);
#pragma GCC unroll 2
          for (int i = 0; i < PARTS; i++)
            halves[i][h][j] = interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(even[i]), odd[i], 1));
        }
      }
#pragma GCC unroll 2
    for (int i = 0; i < PARTS; i++) {
      transpose(halves[i][0]);
      transpose(halves[i][1]);
      char* const its = to + i * part_bytes;
      for (int r = 0; r < kPanel; r++) {
        _mm512_store_si512(its + r * 64, _mm512_permutex2var_epi16(halves[i][0][r], low, halves[i][1][r]));
        _mm512_store_si512(its + kTileBytes + r * 64, _mm512_permutex2var_epi16(halves[i][0][r], high, halves[i][1][r]));
      }
    }
  }
}

// ---- products -------------------------------------------------------------------------------------------------------
constexpr int kTile = kRows * kPanel;
// Elements of K that are multiplied at a time: 32 rows of A and two panels stay in the first cache together. Of more parts they do
// not, and sums are begun anew each time.
template <int PARTS>
constexpr int64_t kAtOnce = PARTS == 1 ? 256 : kPart;
// Lines that are fetched of the next rows of A in each step of K: as many as 32 rows have, where they meet all panels.
template <int PARTS>
constexpr int kFetched = PARTS == 1 ? 4 : 3;

// Bytes from a part of A, or of the panels, to the next, and from a panel to the next.
struct Strides {
  int64_t a_part, b_part, panel;
};

// kRows or twice as many rows of A with one panel or two: sums in tiles 0 to 3, panels in 4 and 5, A in 6 and 7. Lines from `fetch`
// on are fetched meanwhile; returns where it got to.
template <int PARTS, int BLOCKS, int PANELS>
const char* tiles_of(const char* a, const char* b, const Strides& strides, int64_t height, int64_t k, const char* fetch, float* c,
                     int64_t width) {
  float* const of_c[] = {c, c + kTile, c + kRows * width, c + kRows * width + kTile};
  alignas(64) float sums[4][kTile];  // from 0 on: a chain of all K would lose what parts are for
  const auto at = [&](int i) { return PARTS == 1 ? of_c[i] : sums[i]; };
  asm volatile("" ::: "memory");  // the intrinsics do not say what they read and write
  if constexpr (PARTS == 1) {
    _tile_loadd(0, at(0), 64);
    if constexpr (PANELS == 2) _tile_loadd(1, at(1), 64);
    if constexpr (BLOCKS == 2) _tile_loadd(2, at(2), 64);
    if constexpr (BLOCKS == 2 && PANELS == 2) _tile_loadd(3, at(3), 64);
  } else {
    _tile_zero(0);
    if constexpr (PANELS == 2) _tile_zero(1);
    if constexpr (BLOCKS == 2) _tile_zero(2);
    if constexpr (BLOCKS == 2 && PANELS == 2) _tile_zero(3);
  }
  for (const auto& [of_a, of_b] : kProducts<PARTS>) {
    const char* x = a + of_a * strides.a_part;
    const char* y = b + of_b * strides.b_part;
    for (int64_t j = 0; j < k; j += kStep, x += height * 64, y += kTileBytes) {
#pragma GCC unroll 4
      for (int line = 0; line < kFetched<PARTS>; line++, fetch += 64) _mm_prefetch(fetch, _MM_HINT_T1);
      _tile_loadd(4, y, 64);
      _tile_loadd(6, x, 64);
      if constexpr (PANELS == 2) _tile_loadd(5, y + strides.panel, 64);
      if constexpr (BLOCKS == 2) _tile_loadd(7, x + kTileBytes, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (PANELS == 2) _tile_dpbf16ps(1, 5, 6);
      if constexpr (BLOCKS == 2) _tile_dpbf16ps(2, 4, 7);
      if constexpr (BLOCKS == 2 && PANELS == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, at(0), 64);
  if constexpr (PANELS == 2) _tile_stored(1, at(1), 64);
  if constexpr (BLOCKS == 2) _tile_stored(2, at(2), 64);
  if constexpr (BLOCKS == 2 && PANELS == 2) _tile_stored(3, at(3), 64);
  asm volatile("" ::: "memory");
  if constexpr (PARTS > 1)
    for (int i = 0; i < 4; i++)
      if (i % 2 < PANELS && i / 2 < BLOCKS)
        for (int j = 0; j < kTile; j += 16)
          _mm512_store_ps(of_c[i] + j, _mm512_add_ps(_mm512_load_ps(of_c[i] + j), _mm512_load_ps(sums[i] + j)));
  return fetch;
}

template <int PARTS>
void multiply(const void* tile, const void* next, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k,
              int64_t, float* C) {
  const int64_t width = count * kPanel;
  const Strides strides{k / kStep * height * 64, k / kStep * kTileBytes, stride};
  const char* a = static_cast<const char*>(tile);
  const char* b = static_cast<const char*>(panels);
  const char* fetch = static_cast<const char*>(next);
  for (int64_t from = 0; from < k; from += kAtOnce<PARTS>) {
    const int64_t these = std::min(kAtOnce<PARTS>, k - from);
    for (int64_t i = 0; i < count; i += 2) {
      const bool two = i + 1 < count;
      const auto run = height == kRows ? (two ? &tiles_of<PARTS, 1, 2> : &tiles_of<PARTS, 1, 1>)
                                       : (two ? &tiles_of<PARTS, 2, 2> : &tiles_of<PARTS, 2, 1>);
      fetch = run(a, b + i * stride, strides, height, these, fetch, C + i * kPanel * kRows, width);
    }
    a += these / kStep * height * 64;
    b += these / kStep * kTileBytes;
  }
}

template <class T, int PARTS>
constexpr Gemm kGemm{
    32,     16,  kBlock, 2 * PARTS, 16, &pack<T, PARTS>, &panel<PARTS>, &columns, &convert<PARTS>, &multiply<PARTS>, &finish_blocks,
    &begin, &end};

const Implementation for_bfloat16{gemm_4bit_bfloat16, Isa::amx, kGemm<bfloat16, 1>};
const Implementation for_float16{gemm_4bit_float16_parts, Isa::amx, kGemm<half, 2>};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
