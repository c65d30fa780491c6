// gemv_4bit on CPUs: a few rows of A, whose products with a row of B are dot products in the order of its codes.
#pragma once
#include "../gemm_4bit/product_4bit.h"

namespace bnb::cpu {

// Elements of K at a time: where statistics are nested, their scales are made together.
constexpr int64_t kSpan = 2048;

// For B's whose rows are aligned; all else is the way of gemm_4bit.
struct Gemv {
  int64_t most_rows = 0;  // of A that it is fast for, in up to kMostGroups groups
  int64_t max_rows = 0;  // of A in a group
  int64_t step = 0;  // elements of a row of A that are prepared together
  int64_t floats = 0;  // that they take
  // x = A in the order in which the codes of B are looked up, zeros up to a multiple of step. False for an A that is not for it.
  bool (*prepare)(const Product&, float* x) = nullptr;
  // Rows first to last of B.
  void (*run)(const Product&, const float* x, int64_t first, int64_t last) = nullptr;
};
extern Slot<Gemv> gemv_4bit;
constexpr int64_t kMostGroups = 2;
// The same for float16 and bfloat16, by products of whole numbers; nothing (max_rows 0) where it is no faster.
extern Slot<Gemv> gemv_4bit_words;

}  // namespace bnb::cpu
