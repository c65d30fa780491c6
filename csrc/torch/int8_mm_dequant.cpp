// int8_mm_dequant, int8_scaled_mm and int8_mixed_scaled_mm.
#include "int8.h"

namespace bnb {

Dequant check_dequant(const char* op, const Tensor& A, Rows product, const char* name_row, const Tensor& row_stats,
                      const char* name_col, const Tensor& col_stats, const std::optional<Tensor>& bias, ScalarType dtype) {
  check_float(op, "dtype", dtype);
  check_dtype(op, name_row, row_stats, ScalarType::Float);
  check_device(op, name_row, row_stats, A);
  if (row_stats.numel() != product.rows)
    fail(op, ": ", name_row, " must have ", product.rows, " elements, one for each row of the product, got ", row_stats.numel());
  check_dtype(op, name_col, col_stats, ScalarType::Float);
  check_device(op, name_col, col_stats, A);
  if (col_stats.numel() != product.cols)
    fail(op, ": ", name_col, " must have ", product.cols, " elements, one for each column of the product, got ", col_stats.numel());
  if (bias) {
    check_float(op, "bias", *bias);
    check_device(op, "bias", *bias, A);
    check_shape(op, "bias", *bias, Shape{product.cols});
  }
  return {dense(row_stats), dense(col_stats), bias ? std::optional(dense(*bias)) : std::nullopt, dtype};
}

void run_dequant(const char* op, const Tensor& product, Rows size, const Dequant& d, const Tensor& out,
                 const std::optional<Tensor>& addend) {
  if (size.rows == 0 || size.cols == 0) return;
  Call(op, product)(&Backend::dequant_mm_int32, static_cast<int>(dtype_of(d.dtype)),
                    static_cast<const int32_t*>(product.data_ptr()), static_cast<const float*>(d.row_stats.data_ptr()),
                    static_cast<const float*>(d.col_stats.data_ptr()), out.data_ptr(),
                    static_cast<const void*>(d.bias ? d.bias->data_ptr() : nullptr),
                    d.bias ? static_cast<int>(dtype_of(d.bias->scalar_type())) : 0,
                    static_cast<const void*>(addend ? addend->data_ptr() : nullptr), size.rows, size.cols);
}

namespace {

Tensor int8_mm_dequant(Tensor A, Tensor row_stats, Tensor col_stats, std::optional<ScalarType> dtype, std::optional<Tensor> bias) {
  constexpr const char* op = "int8_mm_dequant";
  check_dtype(op, "A", A, ScalarType::Int);
  const Rows size = rows_of(op, "A", A, true);
  const Dequant d =
      check_dequant(op, A, size, "row_stats", row_stats, "col_stats", col_stats, bias, dtype.value_or(ScalarType::Half));
  Tensor out = empty_like(A, d.dtype);
  fill(out, [&](const Tensor& o) { run_dequant(op, dense(A), size, d, o); });
  return out;
}

// A product that is scaled before it is written, plus that of `outliers` and B's `columns` of these numbers.
Tensor fused_product(const Call& call, const Tensor& A, const Tensor& B, const Shape& shape, const Dequant& d,
                     const std::optional<Tensor>& outliers = std::nullopt, const std::optional<Tensor>& columns = std::nullopt) {
  Tensor out = empty(shape, d.dtype, A);
  if (out.numel() == 0) return out;
  const Tensor a = dense(A), b = dense(B);
  const int64_t n = B.size(0);
  call(&Backend::int8_scaled_mm, static_cast<int>(dtype_of(d.dtype)), static_cast<const int8_t*>(a.data_ptr()),
       static_cast<const int8_t*>(b.data_ptr()), static_cast<const float*>(d.row_stats.data_ptr()),
       static_cast<const float*>(d.col_stats.data_ptr()), out.data_ptr(),
       static_cast<const void*>(d.bias ? d.bias->data_ptr() : nullptr),
       d.bias ? static_cast<int>(dtype_of(d.bias->scalar_type())) : 0,
       static_cast<const void*>(outliers ? outliers->data_ptr() : nullptr),
       static_cast<const int64_t*>(columns ? columns->data_ptr() : nullptr), columns ? columns->numel() : 0, out.numel() / n, n,
       B.size(1));
  return out;
}

// The product in int32, then one pass that scales it.
Tensor scaled_product(const char* op, const Tensor& A, const Tensor& B, const Shape& shape, const Dequant& d,
                      const std::optional<Tensor>& addend = std::nullopt) {
  if (const Call call(op, A); !addend && is_ours(call, rows_of(op, "A", A, true).rows)) return fused_product(call, A, B, shape, d);
  const Tensor product = dense(int8_product(op, A, B, shape));
  Tensor out = empty(shape, d.dtype, A);
  run_dequant(op, product, rows_of(op, "A", product, true), d, out, addend);
  return out;
}

Rows size_of(const char* op, const Tensor& A, const Tensor& B) { return {rows_of(op, "A", A, true).rows, B.size(0)}; }

Tensor int8_scaled_mm(Tensor A, Tensor B, Tensor row_stats, Tensor col_stats, std::optional<Tensor> bias,
                      std::optional<ScalarType> dtype) {
  constexpr const char* op = "int8_scaled_mm";
  const Shape shape = check_int8_product(op, "A", A, "B", B);
  const Dequant d = check_dequant(op, A, size_of(op, A, B), "row_stats", row_stats, "col_stats", col_stats, bias,
                                  dtype.value_or(ScalarType::Half));
  return scaled_product(op, A, B, shape, d);
}

// Outliers, rows times columns, up to which a SYCL kernel of the product adds theirs; a kernel of their own is faster for more.
constexpr int64_t kFewOutliers = 512;

std::tuple<Tensor, std::optional<Tensor>> int8_mixed_scaled_mm(Tensor A, Tensor CA, Tensor CB, Tensor SCA, Tensor SCB,
                                                               std::optional<Tensor> outlier_cols, std::optional<Tensor> bias) {
  constexpr const char* op = "int8_mixed_scaled_mm";
  check_float(op, "A", A);
  check_device(op, "CA", CA, A);
  const Shape shape = check_int8_product(op, "CA", CA, "CB", CB);
  const Rows size = size_of(op, CA, CB);
  const int64_t k = CB.size(1);
  if (A.dim() == 0 || A.size(A.dim() - 1) != k || A.numel() != CA.numel())
    fail(op, ": A must be of CA's shape ", text_of(CA.sizes()), ", got ", text_of(A.sizes()));
  Dequant d = check_dequant(op, A, size, "SCA", SCA, "SCB", SCB, bias, A.scalar_type());
  const bool sparse = outlier_cols && outlier_cols->numel() > 0;
  if (sparse) {
    check_dtype(op, "outlier_cols", *outlier_cols, ScalarType::Long);
    check_device(op, "outlier_cols", *outlier_cols, A);
    if (outlier_cols->dim() != 1) fail(op, ": outlier_cols must have one dimension, got ", text_of(outlier_cols->sizes()));
  }
  if (!sparse) return {scaled_product(op, CA, CB, shape, d), empty(Shape{0}, A.scalar_type(), A)};
  // The outlier columns in full precision, of the activation and of the weight scaled back; the bias goes with them.
  const Tensor flat = A.dim() == 2 ? A : torch::stable::reshape(A, Shape{size.rows, k});
  const Tensor outliers = aten("aten::index_select", "", flat, int64_t{1}, *outlier_cols);
  const Call call(op, A);
  // The CPU library's product shares the weights of outlier columns among many rows itself.
  const bool few = call.is_of_cpu_library() || size.rows * outlier_cols->numel() <= kFewOutliers;
  if (few && is_ours(call, size.rows))
    return {fused_product(call, CA, CB, shape, d, dense(outliers), dense(*outlier_cols)), outliers};
  if (is_ours(call, 1)) {
    const Tensor x = dense(outliers), columns = dense(*outlier_cols), weight = dense(CB), addend = empty(shape, A.scalar_type(), A);
    call(&Backend::int8_outlier_product, static_cast<int>(dtype_of(A.scalar_type())), static_cast<const void*>(x.data_ptr()),
         static_cast<const int8_t*>(weight.data_ptr()), static_cast<const int64_t*>(columns.data_ptr()), columns.numel(),
         static_cast<const float*>(d.col_stats.data_ptr()), addend.data_ptr(), size.rows, size.cols, k);
    return {scaled_product(op, CA, CB, shape, d, addend), outliers};
  }
  const Tensor codes = aten("aten::index_select", "", CB, int64_t{1}, *outlier_cols);
  const Tensor weight = int8_dequantized(op, codes, {size.cols, outlier_cols->numel()}, d.col_stats, A.scalar_type());
  if (d.bias && d.bias->scalar_type() != A.scalar_type()) d.bias = torch::stable::to(*d.bias, std::optional(A.scalar_type()));
  const Tensor addend = aten("aten::linear", "", outliers, weight, d.bias);
  d.bias = std::nullopt;
  return {scaled_product(op, CA, CB, shape, d, dense(addend)), outliers};
}

BNB_OPERATOR("int8_mm_dequant", int8_mm_dequant);
BNB_OPERATOR("int8_scaled_mm", int8_scaled_mm);
BNB_OPERATOR("int8_mixed_scaled_mm", int8_mixed_scaled_mm);

}  // namespace
}  // namespace bnb
