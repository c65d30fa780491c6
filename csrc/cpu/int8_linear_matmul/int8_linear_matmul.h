// Products of int8 matrices on CPUs: A[m, k] B[n, k]^T, exact in int32 (modulo 2^32), or scaled back at once.
//
// The work is cut into strips, of kColumns columns of the result (rows of B) each. A strip of B is rearranged into words
// of four neighbours along k, the words of neighbouring columns side by side, and stays in the cache while all blocks of
// rows of A, rearranged once for all threads, pass over it. Tiles, and products of few rows, take B as it is stored.
#pragma once
#include "../../int8_scales.h"
#include "../cpu.h"

namespace bnb::cpu {

struct Product {
  const int8_t *A, *B;
  int64_t m, n, k;
  int32_t* sums;  // the result itself; or null, and out = A B^T * row_stats * col_stats / 127² + bias + outliers' product:
  int dtype;      // of out and outliers
  void* out;
  const float *row_stats, *col_stats;
  const void* bias;  // of bias_dtype, a value a column, or null
  int bias_dtype;
  const void* outliers;    // [m, n_columns]: they are multiplied with B's columns of these numbers, scaled back to dtype
  const int64_t* columns;  // [n_columns]
  int64_t n_columns;
};

// Rows first to last of A, rearranged: `blocks` of `height` rows (the last may be lower), `words` of 4 bytes apart.
struct PackedRows {
  int32_t* data;
  int64_t first, last, height, words;
  int64_t blocks() const { return ceil_div(last - first, height); }
};

struct ProductKernels {
  int64_t rows, multiple;  // of a block at most, and what their number is a multiple of, but for the last block
  int64_t columns;         // of a strip
  int64_t few;            // up to so many rows of A go without rearranging B
  int64_t (*words)(const Product&);  // of 4 bytes, for a row of A
  void (*pack)(const Product&, const PackedRows&, int64_t first_block, int64_t last_block);
  // Blocks first to last of A with strips first to last of B; false if there is no memory.
  bool (*run)(const Product&, const PackedRows&, int64_t first_block, int64_t last_block, int64_t first_strip, int64_t last_strip);
  // The same for few rows, all of A at once.
  void (*pack_few)(const Product&, int32_t* packed);
  bool (*run_few)(const Product&, const int32_t* packed, int64_t first_strip, int64_t last_strip);
};
extern Slot<ProductKernels> int8_product;

// Memory of the calling thread, aligned to 64 bytes, valid until the thread asks for the same `use` again.
enum class Use { rows, strips };
void* thread_memory(Use use, int64_t bytes);

}  // namespace bnb::cpu
