// The operators of LLM.int8() that others are made of.
#pragma once
#include "common.h"

namespace bnb {

// A as a matrix: the product of all sizes but the last, and the last.
struct Rows {
  int64_t rows, cols;
};
// Fails if A has no dimension; the last may be 0 only where `may_be_empty`.
Rows rows_of(const char* op, const char* argument, const Tensor& A, bool may_be_empty);

// A[..., K] B[N, K]^T in int32, of the shape that check_int8_product gives.
Shape check_int8_product(const char* op, const char* name_A, const Tensor& A, const char* name_B, const Tensor& B);
Tensor int8_product(const char* op, const Tensor& A, const Tensor& B, const Shape& shape);

// Whether a product of so many rows is for a kernel of ours, and not for torch's.
inline bool is_ours(const Call& call, int64_t rows) { return rows <= call.ask(&Backend::int8_few_rows); }

// The arguments of int8_mm_dequant but for A.
struct Dequant {
  Tensor row_stats, col_stats;
  std::optional<Tensor> bias;
  ScalarType dtype;
};
// Checks them for a product of that many rows and columns on A's device, and makes them contiguous.
Dequant check_dequant(const char* op, const Tensor& A, Rows product, const char* name_row, const Tensor& row_stats,
                      const char* name_col, const Tensor& col_stats, const std::optional<Tensor>& bias, ScalarType dtype);
// Of a contiguous product into a contiguous out; `addend`, of out's dtype and size, is added before rounding.
void run_dequant(const char* op, const Tensor& product, Rows size, const Dequant& d, const Tensor& out,
                 const std::optional<Tensor>& addend = std::nullopt);

// A contiguous, stats fp32 and contiguous, one or one for each row.
Tensor int8_dequantized(const char* op, const Tensor& A, Rows size, const Tensor& stats, ScalarType dtype);

}  // namespace bnb
