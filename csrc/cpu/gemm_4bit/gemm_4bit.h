// gemm_4bit on CPUs: B is dequantised a panel at a time, which stays in the caches, and multiplied with tiles of A.
//
// A panel is kPanel rows of B and a part of K, column by column: [k][kPanel] for fp32, [k / 2][kPanel][2] for bfloat16; as AMX's
// tiles want it, row by row. For the product with B's transpose it is kPanel columns and a part of the rows: [k][kPanel], or [k /
// 2][kPanel][2] for every bfloat16. Its products are summed up in fp32, in C [rows of A][panels * kPanel], or as finish wants it.
#pragma once
#include <limits>

#include "product_4bit.h"

namespace bnb::cpu {

constexpr int kPanel = 16;
// Elements of K that are packed, dequantised and multiplied together.
constexpr int64_t kPart = 512;
// So many of K products of fp32 are summed up one after another before they are added to C: about the root of K, since a long
// chain loses too much, as many short ones do, and up to where the additions to C are cheap.
constexpr int64_t chain_of(int64_t k) {
  int64_t chain = 8;
  while (chain < 64 && chain * chain < k) chain *= 2;
  return chain;
}
// Columns of B are read so many rows ahead: hardware does not follow such steps from page to page.
constexpr int64_t kRowsAhead = 16;

// A part of kPanel rows of B, whose parts begin at whole multiples of 8 elements.
struct PanelOfB {
  const uint8_t* rows[kPanel];  // a row beyond the last is the last
  const float* code;
  const float* scales;  // [k / granule][kPanel]
  int64_t granule;      // elements of a row that share a scale: a multiple of 8
  int64_t k;            // elements of a row: a multiple of 8
  int64_t ahead;        // bytes from a row to what is read next, to be prefetched
};

// A part of columns of B, of which each kPanel begin at a whole byte.
struct ColumnsOfB {
  const uint8_t* codes;  // of the first row's
  int64_t stride;        // bytes from a row to the next
  const float* code;
  const float* scales;  // [rows][panels / of_block, rounded up]
  int64_t rows;
  int64_t panels;
  int64_t of_block;      // panels that share a row's scale
  int64_t panel_stride;  // bytes from a panel to the next
};

inline void prefetch_columns(const ColumnsOfB& b, const uint8_t* row) {
  for (int64_t i = 0; i < b.panels * kPanel / 2; i += 64) __builtin_prefetch(row + kRowsAhead * b.stride + i);
}

struct Gemm {
  int64_t max_tile;      // rows of A in a tile, at most
  int64_t tile_multiple;  // a tile is filled up to a multiple of so many rows
  int64_t k_multiple;    // K is filled up with zeros to a multiple of so many: at most 64
  int64_t element;       // bytes of an element of a tile or a panel
  int64_t max_panels;    // that are multiplied together, at most, where A has many rows
  // Elements first to last of K, a part or what is left, of `rows` rows of A from row `row` on, into a tile of `height` rows: its
  // columns from first on, as far as the next multiple of k_multiple.
  void (*pack)(const Product&, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile);
  void (*panel)(const PanelOfB&, void* panel);
  // The same of B's transpose, panels side by side; null where gradients do not come.
  void (*columns)(const ColumnsOfB&, void* panels);
  // A panel of values [k][kPanel] in fp32; null where a panel is just that.
  void (*convert)(const float* values, int64_t k, void* panel);
  // C += tile * panels^T, over k (a multiple of k_multiple) elements; `next` is what is multiplied after this tile, if
  // anything is, for kernels that fetch it, and `chain` is chain_of(K), for kernels of fp32.
  void (*multiply)(const void* tile, const void* next, int64_t height, const void* panels, int64_t panel_stride, int64_t count,
                   int64_t k, int64_t chain, float* C);
  // `rows` rows of C from row `row` on and columns [n, n + columns), of `width` in C, to out.
  void (*finish)(const Product&, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns);
  // Around all work of a thread; null for nothing.
  void (*begin)();
  void (*end)();
  // In place of max_panels where A, packed, is so large that reading it again takes time; 0 for no others.
  int64_t panels_of_large = 0;
  // Of K, where two panels are multiplied together: so that the first cache keeps them.
  int64_t part_of_two = kPart;
  // Of A: fewer are faster in the groups that gemv_4bit takes.
  int64_t least_rows = std::numeric_limits<int64_t>::max();
};
// For bfloat16, and for the others.
extern Slot<Gemm> gemm_4bit_bfloat16, gemm_4bit;
// For many rows of float16, by products of bfloat16; nothing (max_tile 0) without AMX.
extern Slot<Gemm> gemm_4bit_float16_parts;
// In place of gemm_4bit_bfloat16 and gemm_4bit_float16_parts for B's transpose; nothing (max_tile 0) without AMX.
extern Slot<Gemm> gemm_4bit_transposed_bfloat16, gemm_4bit_transposed_float16_parts;
// With A in int8, for those who ask for it; nothing (max_tile 0) without VNNI. K and blocks are multiples of what A is scaled in.
extern Slot<Gemm> gemm_4bit_int8;
constexpr int64_t kInt8Block = 64;

}  // namespace bnb::cpu
