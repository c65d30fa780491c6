// dequantize_4bit, dequantize_blockwise, and their .out variants.
#include "common.h"

namespace bnb {
namespace {

void check_4bit(const char* op, const Tensor& A, const Tensor& absmax, int64_t blocksize, int64_t n, ScalarType dtype) {
  check_4bit_blocksize(op, blocksize);
  check_float(op, "dtype", dtype);
  check_packed(op, "A", A, n);
  check_dtype(op, "absmax", absmax, ScalarType::Float);
  check_device(op, "absmax", absmax, A);
  check_numel(op, "absmax", absmax, ceil_div(n, blocksize), "one for each block");
}

void run_4bit(const char* op, const Tensor& A, const Tensor& absmax, int64_t blocksize, int data_type, int64_t n, ScalarType dtype,
              const Tensor& out) {
  if (n == 0) return;
  const Tensor codes = dense(A), scales = dense(absmax);
  Call(op, A)(&Backend::dequantize_blockwise, dtype_of(dtype), data_type, static_cast<const float*>(nullptr),
              static_cast<const uint8_t*>(codes.data_ptr()), static_cast<const float*>(scales.data_ptr()), out.data_ptr(),
              blocksize, n);
}

Tensor dequantize_4bit(Tensor A, Tensor absmax, int64_t blocksize, std::string quant_type, Shape shape, ScalarType dtype) {
  constexpr const char* op = "dequantize_4bit";
  const int data_type = check_quant_type(op, quant_type);
  const int64_t n = check_numel_of(op, "shape", shape);
  check_4bit(op, A, absmax, blocksize, n, dtype);
  Tensor out = empty(shape, dtype, A);
  run_4bit(op, A, absmax, blocksize, data_type, n, dtype, out);
  return out;
}

void check_out(const char* op, const Tensor& out, Sizes shape, ScalarType dtype, const Tensor& A) {
  check_shape(op, "out", out, shape);
  check_dtype(op, "out", out, dtype);
  check_device(op, "out", out, A);
}

void dequantize_4bit_out(Tensor A, Tensor absmax, int64_t blocksize, std::string quant_type, Shape shape, ScalarType dtype,
                         Tensor out) {
  constexpr const char* op = "dequantize_4bit.out";
  const int data_type = check_quant_type(op, quant_type);
  const int64_t n = check_numel_of(op, "shape", shape);
  check_4bit(op, A, absmax, blocksize, n, dtype);
  check_out(op, out, shape, dtype, A);
  fill(out, [&](const Tensor& o) { run_4bit(op, A, absmax, blocksize, data_type, n, dtype, o); });
}

void check_8bit(const char* op, const Tensor& A, const Tensor& absmax, const Tensor& code, int64_t blocksize, ScalarType dtype) {
  if (blocksize <= 0) fail(op, ": blocksize must be positive, got ", blocksize);
  check_float(op, "dtype", dtype);
  check_dtype(op, "A", A, ScalarType::Byte);
  check_dtype(op, "absmax", absmax, ScalarType::Float);
  check_device(op, "absmax", absmax, A);
  check_numel(op, "absmax", absmax, ceil_div(A.numel(), blocksize), "one for each block");
  check_dtype(op, "code", code, ScalarType::Float);
  check_device(op, "code", code, A);
  check_numel(op, "code", code, 256, "one for each value of a byte");
}

void run_8bit(const char* op, const Tensor& A, const Tensor& absmax, const Tensor& code, int64_t blocksize, ScalarType dtype,
              const Tensor& out) {
  const int64_t n = A.numel();
  if (n == 0) return;
  const Tensor codes = dense(A), scales = dense(absmax), table = dense(code);
  Call(op, A)(&Backend::dequantize_blockwise, dtype_of(dtype), static_cast<int>(BNB_GENERAL8BIT),
              static_cast<const float*>(table.data_ptr()), static_cast<const uint8_t*>(codes.data_ptr()),
              static_cast<const float*>(scales.data_ptr()), out.data_ptr(), blocksize, n);
}

Tensor dequantize_blockwise(Tensor A, Tensor absmax, Tensor code, int64_t blocksize, ScalarType dtype) {
  constexpr const char* op = "dequantize_blockwise";
  check_8bit(op, A, absmax, code, blocksize, dtype);
  // The values lie in A's logical order; the strides are those of empty_like(A), as the fake kernel promises.
  Tensor out = empty_like(A, dtype);
  fill(out, [&](const Tensor& o) { run_8bit(op, A, absmax, code, blocksize, dtype, o); });
  return out;
}

void dequantize_blockwise_out(Tensor A, Tensor absmax, Tensor code, int64_t blocksize, ScalarType dtype, Tensor out) {
  constexpr const char* op = "dequantize_blockwise.out";
  check_8bit(op, A, absmax, code, blocksize, dtype);
  check_out(op, out, A.sizes(), dtype, A);
  fill(out, [&](const Tensor& o) { run_8bit(op, A, absmax, code, blocksize, dtype, o); });
}

BNB_OPERATOR("dequantize_4bit", dequantize_4bit);
BNB_OPERATOR("dequantize_4bit.out", dequantize_4bit_out);
BNB_OPERATOR("dequantize_blockwise", dequantize_blockwise);
BNB_OPERATOR("dequantize_blockwise.out", dequantize_blockwise_out);

}  // namespace
}  // namespace bnb
