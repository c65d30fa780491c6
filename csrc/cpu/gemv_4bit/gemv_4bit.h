// gemv_4bit on CPUs: a few rows of A, whose products with a row of B are dot products in the order of its codes.
#pragma once
#include "../gemm_4bit/product_4bit.h"

namespace bnb::cpu {

// For B's whose rows are aligned; all else is the way of gemm_4bit.
struct Gemv {
  int64_t max_rows;  // of A
  int64_t step;      // elements of A that are prepared together
  // x = A in fp32, its elements in the order in which the codes of B are looked up; zeros up to a multiple of step.
  void (*prepare)(const Product&, float* x);
  // Rows first to last of B.
  void (*run)(const Product&, const float* x, int64_t first, int64_t last);
};
extern Slot<Gemv> gemv_4bit;

}  // namespace bnb::cpu
