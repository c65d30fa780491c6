// int8_linear_matmul and its .out variant: on CPUs, and for few rows on XPUs that are one, a kernel of ours; on GPUs torch's
// own int8 matrix product (oneDNN), which is the best there is.
#include "int8.h"

namespace bnb {

Shape check_int8_product(const char* op, const char* name_A, const Tensor& A, const char* name_B, const Tensor& B) {
  check_dtype(op, name_A, A, ScalarType::Char);
  check_dtype(op, name_B, B, ScalarType::Char);
  check_device(op, name_B, B, A);
  if (A.dim() == 0 || B.dim() != 2 || A.size(A.dim() - 1) != B.size(1))
    fail(op, ": ", name_B, " must be of shape [N, K] to match ", name_A, "'s [..., K], got ", text_of(B.sizes()), " and ",
         text_of(A.sizes()));
  return with_last(A, B.size(0));
}

// [M, 1] times [N, 1] transposed. torch's own product is wrong for one column, on a CPU at least.
static Tensor outer(const Tensor& A, const Tensor& B) {
  const std::optional wide(ScalarType::Int);
  return aten("aten::mul", "Tensor", torch::stable::to(A, wide), torch::stable::transpose(torch::stable::to(B, wide), 0, 1));
}

// A as torch's product wants it: [rows, k], and of one row stepping by k, since it takes one that steps by 1 for columns.
static Tensor as_rows(const Tensor& A, int64_t k) {
  const Tensor a = dense(A);
  const int64_t rows = A.numel() / k;
  if (a.dim() == 2 && (rows > 1 || a.stride(0) == k)) return a;
  return torch::stable::reshape(rows > 1 ? a : torch::stable::reshape(a, Shape{k}), Shape{rows, k});
}

// Into `out`, contiguous, of A's sizes but for the last.
static void multiply(const Call& call, const Tensor& A, const Tensor& B, const Tensor& out) {
  if (out.numel() == 0) return;
  const Tensor a = dense(A), b = dense(B);
  const int64_t n = B.size(0);
  call(&Backend::int8_linear_matmul, static_cast<const int8_t*>(a.data_ptr()), static_cast<const int8_t*>(b.data_ptr()),
       static_cast<int32_t*>(out.data_ptr()), n ? out.numel() / n : 0, n, B.size(1));
}

Tensor int8_product(const char* op, const Tensor& A, const Tensor& B, const Shape& shape) {
  const int64_t k = B.size(1);
  if (const Call call(op, A); is_ours(call, rows_of(op, "A", A, true).rows)) {
    Tensor out = empty(shape, ScalarType::Int, A);
    multiply(call, A, B, out);
    return out;
  }
  if (k == 0 || A.numel() == 0 || B.numel() == 0) {
    Tensor zeros = empty(shape, ScalarType::Int, A);
    return torch::stable::zero_(zeros);
  }
  const Tensor flat = as_rows(A, k);
  const Tensor out = k == 1 ? outer(flat, B) : aten("aten::_int_mm", "", flat, torch::stable::transpose(dense(B), 0, 1));
  return A.dim() == 2 ? out : torch::stable::reshape(out, shape);
}

namespace {

Tensor int8_linear_matmul(Tensor A, Tensor B) {
  constexpr const char* op = "int8_linear_matmul";
  return int8_product(op, A, B, check_int8_product(op, "A", A, "B", B));
}

void int8_linear_matmul_out(Tensor A, Tensor B, Tensor out) {
  constexpr const char* op = "int8_linear_matmul.out";
  const Shape shape = check_int8_product(op, "A", A, "B", B);
  check_dtype(op, "out", out, ScalarType::Int);
  check_device(op, "out", out, A);
  check_shape(op, "out", out, shape);
  const int64_t k = B.size(1);
  if (out.numel() == 0) return;
  if (const Call call(op, A); is_ours(call, rows_of(op, "A", A, true).rows)) {
    fill(out, [&](const Tensor& o) { multiply(call, A, B, o); });
    return;
  }
  if (k <= 1 || A.dim() != 2 || !out.is_contiguous()) {
    torch::stable::copy_(out, int8_product(op, A, B, shape));
    return;
  }
  aten("aten::_int_mm", "out", as_rows(A, k), torch::stable::transpose(dense(B), 0, 1), out);
}

BNB_OPERATOR("int8_linear_matmul", int8_linear_matmul);
BNB_OPERATOR("int8_linear_matmul.out", int8_linear_matmul_out);

}  // namespace
}  // namespace bnb
