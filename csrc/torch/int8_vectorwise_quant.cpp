// int8_vectorwise_quant and int8_double_quant.
#include "int8.h"

namespace bnb {

Rows rows_of(const char* op, const char* argument, const Tensor& A, bool may_be_empty) {
  if (A.dim() == 0) fail(op, ": ", argument, " must have at least one dimension, got a scalar");
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < A.dim(); d++) rows *= A.size(d);
  const int64_t cols = A.size(A.dim() - 1);
  if (cols == 0 && !may_be_empty) fail(op, ": ", argument, " must have at least one column, got ", text_of(A.sizes()));
  return {rows, cols};
}

namespace {

using ByRow = std::tuple<Tensor, Tensor, std::optional<Tensor>>;

Rows check(const char* op, const Tensor& A, double threshold) {
  check_float(op, "A", A);
  if (!(threshold >= 0)) fail(op, ": threshold must not be negative, got ", threshold);
  return rows_of(op, "A", A, false);
}

// The columns whose byte is set: the one place where the host waits, since the result's size depends on the data.
Tensor columns_of(const Tensor& outliers) {
  if (is_on_cpu(outliers)) {
    const auto* const set = static_cast<const uint8_t*>(outliers.data_ptr());
    const int64_t n = outliers.numel();
    const Tensor columns = empty(Shape{n - std::count(set, set + n, uint8_t{0})}, ScalarType::Long, outliers);
    auto* to = static_cast<int64_t*>(columns.data_ptr());
    for (int64_t c = 0; c < n; c++)
      if (set[c]) *to++ = c;
    return columns;
  }
  return torch::stable::reshape(aten("aten::nonzero", "", outliers), Shape{-1});
}

// A is contiguous; `out` too.
ByRow quantize_rows(const char* op, const Tensor& A, Rows size, double threshold, Tensor out) {
  const BnbDtype dtype = dtype_of(A.scalar_type());
  const Tensor stats = empty(Shape{size.rows}, ScalarType::Float, A);
  const bool sparse = threshold > 0;
  if (size.rows == 0) return {out, stats, sparse ? std::optional(empty(Shape{0}, ScalarType::Long, A)) : std::nullopt};
  std::optional<Tensor> outliers;
  if (sparse) {
    outliers = empty(Shape{size.cols}, ScalarType::Byte, A);
    torch::stable::zero_(*outliers);
  }
  const Call call(op, A);
  auto* const codes = static_cast<int8_t*>(out.data_ptr());
  call(&Backend::int8_vector_quant, static_cast<int>(dtype), static_cast<const void*>(A.data_ptr()), codes,
       static_cast<float*>(stats.data_ptr()), sparse ? static_cast<uint8_t*>(outliers->data_ptr()) : nullptr,
       static_cast<float>(threshold), size.rows, size.cols);
  if (!sparse) return {out, stats, std::nullopt};
  const Tensor columns = columns_of(*outliers);
  if (size.rows > 1 && columns.numel() > 0)
    call(&Backend::int8_zero_columns, codes, static_cast<const int64_t*>(columns.data_ptr()), columns.numel(), size.rows,
         size.cols);
  return {out, stats, columns};
}

ByRow int8_vectorwise_quant(Tensor A, double threshold) {
  constexpr const char* op = "int8_vectorwise_quant";
  const Rows size = check(op, A, threshold);
  return quantize_rows(op, dense(A), size, threshold, empty(A.sizes(), ScalarType::Char, A));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::optional<Tensor>> int8_double_quant(Tensor A, double threshold) {
  constexpr const char* op = "int8_double_quant";
  const Rows size = check(op, A, threshold);
  const Tensor x = dense(A);
  auto [by_row, row_stats, columns] = quantize_rows(op, x, size, threshold, empty(A.sizes(), ScalarType::Char, A));
  Tensor by_col = empty(A.sizes(), ScalarType::Char, A);
  Tensor col_stats = empty(Shape{size.cols}, ScalarType::Float, A);
  if (size.rows == 0) {
    torch::stable::zero_(col_stats);
  } else {
    // So many rows a group of lanes, that a GPU is filled and the second step is short.
    const int64_t height = std::max<int64_t>(64, ceil_div(size.rows, 128));
    const int64_t parts = ceil_div(size.rows, height);
    const Tensor scratch = empty(Shape{parts > 1 ? parts * size.cols : 0}, ScalarType::Float, A);
    Call(op, A)(&Backend::int8_column_quant, static_cast<int>(dtype_of(A.scalar_type())), static_cast<const void*>(x.data_ptr()),
                static_cast<int8_t*>(by_col.data_ptr()), static_cast<float*>(col_stats.data_ptr()),
                static_cast<float*>(scratch.data_ptr()), static_cast<float>(threshold), size.rows, size.cols, height);
  }
  if (!A.is_contiguous()) {  // strides as of torch.empty_like(A)
    const auto restride = [&](Tensor& t) {
      Tensor other = empty_like(A, ScalarType::Char);
      torch::stable::copy_(other, t);
      t = other;
    };
    restride(by_row);
    restride(by_col);
  }
  return {by_row, by_col, row_stats, col_stats, columns};
}

BNB_OPERATOR("int8_vectorwise_quant", int8_vectorwise_quant);
BNB_OPERATOR("int8_double_quant", int8_double_quant);

}  // namespace
}  // namespace bnb
