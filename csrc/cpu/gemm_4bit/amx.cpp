#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "../transpose_avx512.h"
#include "../tiles_amx.h"
#include "amx.h"
#include "amx_finish.h"
#include "bfloat16.h"
#include "amx_bfloat16.h"

// kBlock elements of K go into two tiles, in the order in which their codes are looked up: element 4 i + kOrder[j] of a block is
// element 16 j + i of the two rows.
constexpr int kBlock = 64;
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
        __m512i pairs[PARTS];
        pairs_of_parts(row(at), row(at + 1), pairs);
#pragma GCC unroll 2
        for (int i = 0; i < PARTS; i++) halves[i][h][j] = pairs[i];
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

// Of bfloat16 products begin to be faster than groups of gemv_4bit's with so many rows.
constexpr int64_t kLeastRows = 5;

template <class T, int PARTS>
constexpr Gemm kGemm{32,
                     16,
                     kBlock,
                     2 * PARTS,
                     16,
                     &pack<T, PARTS>,
                     &panel<PARTS>,
                     nullptr,
                     &convert<PARTS>,
                     &multiply<PARTS, false>,
                     &finish_blocks,
                     &begin,
                     &end,
                     0,
                     kPart,
                     kLeastRows};

const Implementation for_bfloat16{gemm_4bit_bfloat16, Isa::amx, kGemm<bfloat16, 1>};
const Implementation for_float16{gemm_4bit_float16_parts, Isa::amx, kGemm<half, 2>};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
