// gemv_4bit and its .out variant.
#include "dot_4bit.h"

namespace bnb {
namespace {

Problem check_gemv(const char* op, const Tensor& A, const Tensor& B, const Shape& shapeB, const Tensor& absmax,
                   const Tensor& code, int64_t blocksize) {
  Problem p = check_product(op, A, B, shapeB, blocksize);
  if (absmax.defined() && absmax.scalar_type() == ScalarType::BFloat16 && is_on_cpu(A))
    fail(op, ": absmax must be float32, got bfloat16: Linear4bit repacks its weight so on CPUs with AVX512-BF16, but not while",
         " bitsandbytes-intel is registered; load or quantise the layer again");
  check_absmax(op, absmax, ceil_div(p.n * p.k, blocksize), "one for each block", A);
  check_dtype(op, "code", code, ScalarType::Float);
  check_device(op, "code", code, A);
  check_numel(op, "code", code, 16, "one for each 4-bit code");
  return p;
}

void run_gemv(const char* op, const Problem& p, const Tensor& A, const Tensor& B, const Tensor& absmax, const Tensor& code,
              int64_t blocksize, const Tensor& out) {
  if (p.m == 0 || p.n == 0) return;
  const Tensor x = dense(A), codes = dense(B), scales = dense(absmax), table = dense(code);
  const BnbStatistics statistics{static_cast<const float*>(scales.data_ptr()), nullptr, nullptr, nullptr};
  Call(op, A)(&Backend::gemv_4bit_inference, dtype_of(A.scalar_type()), p.m, p.n, p.k, static_cast<const void*>(x.data_ptr()),
              static_cast<const uint8_t*>(codes.data_ptr()), &statistics, static_cast<const float*>(table.data_ptr()),
              static_cast<int>(BNB_NF4), out.data_ptr(), p.k, p.k, p.n, blocksize, static_cast<const void*>(nullptr));
}

Tensor gemv_4bit(Tensor A, Tensor B, Shape shapeB, Tensor absmax, Tensor code, int64_t blocksize) {
  constexpr const char* op = "gemv_4bit";
  const Problem p = check_gemv(op, A, B, shapeB, absmax, code, blocksize);
  Tensor out = empty(p.out_shape, A.scalar_type(), A);
  run_gemv(op, p, A, B, absmax, code, blocksize, out);
  return out;
}

void gemv_4bit_out(Tensor A, Tensor B, Shape shapeB, Tensor absmax, Tensor code, int64_t blocksize, Tensor out) {
  constexpr const char* op = "gemv_4bit.out";
  const Problem p = check_gemv(op, A, B, shapeB, absmax, code, blocksize);
  check_shape(op, "out", out, p.out_shape);
  check_dtype(op, "out", out, A.scalar_type());
  check_device(op, "out", out, A);
  if (out.is_contiguous()) return run_gemv(op, p, A, B, absmax, code, blocksize, out);
  Tensor filled = empty(out.sizes(), out.scalar_type(), out);
  run_gemv(op, p, A, B, absmax, code, blocksize, filled);
  torch::stable::copy_(out, filled);
}

BNB_OPERATOR("gemv_4bit", gemv_4bit);
BNB_OPERATOR("gemv_4bit.out", gemv_4bit_out);

}  // namespace
}  // namespace bnb
