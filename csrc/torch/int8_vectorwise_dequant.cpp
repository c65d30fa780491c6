// int8_vectorwise_dequant.
#include "int8.h"

namespace bnb {

Tensor int8_dequantized(const char* op, const Tensor& A, Rows size, const Tensor& stats, ScalarType dtype) {
  Tensor out = empty(A.sizes(), dtype, A);
  if (size.rows == 0 || size.cols == 0) return out;
  Call(op, A)(&Backend::int8_vector_dequant, static_cast<int>(dtype_of(dtype)), static_cast<const int8_t*>(A.data_ptr()),
              static_cast<const float*>(stats.data_ptr()), out.data_ptr(), int64_t{stats.numel() == size.rows}, size.rows,
              size.cols);
  return out;
}

namespace {

Tensor int8_vectorwise_dequant(Tensor A, Tensor stats) {
  constexpr const char* op = "int8_vectorwise_dequant";
  check_dtype(op, "A", A, ScalarType::Char);
  const Rows size = rows_of(op, "A", A, true);
  check_float(op, "stats", stats);
  check_device(op, "stats", stats, A);
  if (stats.numel() != size.rows && stats.numel() != 1)
    fail(op, ": stats must have ", size.rows, " elements, one for each row of A, or one, got ", stats.numel());
  if (stats.scalar_type() != ScalarType::Float) stats = torch::stable::to(stats, std::optional(ScalarType::Float));
  const Tensor out = int8_dequantized(op, dense(A), size, dense(stats), ScalarType::Float);
  if (A.is_contiguous()) return out;
  Tensor strided = empty_like(A, ScalarType::Float);
  return torch::stable::copy_(strided, out);
}

BNB_OPERATOR("int8_vectorwise_dequant", int8_vectorwise_dequant);

}  // namespace
}  // namespace bnb
