// quantize_4bit and quantize_blockwise.
#include "common.h"

#include <tuple>

namespace bnb {
namespace {

void run(const char* op, const Tensor& A, const float* code, int data_type, int64_t blocksize, const Tensor& absmax,
         const Tensor& out) {
  if (A.numel() == 0) return;
  const Tensor values = dense(A);
  Call(op, A)(&Backend::quantize_blockwise, dtype_of(A.scalar_type()), data_type, code, static_cast<const void*>(values.data_ptr()),
              static_cast<float*>(absmax.data_ptr()), static_cast<uint8_t*>(out.data_ptr()), blocksize, A.numel());
}

std::tuple<Tensor, Tensor> quantize_4bit(Tensor A, int64_t blocksize, std::string quant_type, ScalarType quant_storage) {
  constexpr const char* op = "quantize_4bit";
  check_4bit_blocksize(op, blocksize);
  const int data_type = check_quant_type(op, quant_type);
  check_float(op, "A", A);
  if (quant_storage != ScalarType::Byte && quant_storage != ScalarType::Half && quant_storage != ScalarType::BFloat16 &&
      quant_storage != ScalarType::Float)
    fail(op, ": quant_storage must be uint8, float16, bfloat16 or float32, got ", name_of(quant_storage));
  const int64_t n = A.numel();
  const int64_t itemsize = quant_storage == ScalarType::Byte ? 1 : quant_storage == ScalarType::Float ? 4 : 2;
  // With the last half byte free, as upstream counts; what does not fill an element of the storage has no place in it.
  const int64_t stored = (n + 1) / (2 * itemsize);
  if (stored * itemsize < ceil_div(n, 2))
    fail(op, ": A must fill whole elements of quant_storage ", name_of(quant_storage), ", ", 2 * itemsize, " codes each, got ", n,
         " elements");
  const Tensor absmax = empty(Shape{ceil_div(n, blocksize)}, ScalarType::Float, A);
  const Tensor out = empty(Shape{stored, 1}, quant_storage, A);
  run(op, A, nullptr, data_type, blocksize, absmax, out);
  return {out, absmax};
}

std::tuple<Tensor, Tensor> quantize_blockwise(Tensor A, Tensor code, int64_t blocksize) {
  constexpr const char* op = "quantize_blockwise";
  if (blocksize <= 0) fail(op, ": blocksize must be positive, got ", blocksize);
  check_float(op, "A", A);
  check_dtype(op, "code", code, ScalarType::Float);
  check_device(op, "code", code, A);
  check_numel(op, "code", code, 256, "one for each value of a byte");
  const Tensor absmax = empty(Shape{ceil_div(A.numel(), blocksize)}, ScalarType::Float, A);
  const Tensor table = dense(code);
  const Tensor codes = empty(A.sizes(), ScalarType::Byte, A);
  run(op, A, static_cast<const float*>(table.data_ptr()), BNB_GENERAL8BIT, blocksize, absmax, codes);
  if (A.is_contiguous()) return {codes, absmax};
  // The codes lie in A's logical order; the strides are those of empty_like(A), as the fake kernel promises.
  Tensor out =
      aten("aten::empty_like", "", A, std::optional(ScalarType::Byte), std::optional<torch::headeronly::Layout>(),
           std::optional<torch::stable::Device>(), std::optional<bool>(), std::optional<torch::headeronly::MemoryFormat>());
  torch::stable::copy_(out, codes);
  return {out, absmax};
}

BNB_OPERATOR("quantize_4bit", quantize_4bit);
BNB_OPERATOR("quantize_blockwise", quantize_blockwise);

}  // namespace
}  // namespace bnb
