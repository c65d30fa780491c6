// gemm_4bit.
#include "dot_4bit.h"

namespace bnb {
namespace {

// The nested statistics written out: absmax_code[absmax_8bit[i]] * absmax[i / 256] + absmax_offset.
Tensor flat_absmax(const char* op, const Tensor& absmax, const Nested& nested, int64_t blocks) {
  Tensor flat = empty(Shape{blocks}, ScalarType::Float, absmax);
  Call(op, absmax)(&Backend::dequantize_blockwise, static_cast<int>(BNB_FLOAT32), static_cast<int>(BNB_GENERAL8BIT),
                   static_cast<const float*>(nested.absmax_code->data_ptr()),
                   static_cast<const uint8_t*>(nested.absmax_8bit->data_ptr()), static_cast<const float*>(absmax.data_ptr()),
                   flat.data_ptr(), int64_t{256}, blocks);
  // subtract of the negative: the stable ABI of torch 2.10 has no add
  return torch::stable::subtract(flat, aten("aten::neg", "", *nested.absmax_offset));
}

// Dequantises rows of B, a panel at a time, and leaves the products to torch.
Tensor gemm_by_panels(const char* op, const Problem& p, const Tensor& A, const Tensor& B, const Tensor& absmax, int64_t blocksize,
                      int data_type, const std::optional<Tensor>& bias) {
  const ScalarType dtype = A.scalar_type();
  // A panel begins where a block does, and at a whole byte of B.
  int64_t step = blocksize;
  while (step % 2 == 0 && step / 2 * p.k % blocksize == 0) step /= 2;
  const Call call(op, A);
  const int64_t wanted = call.ask(&Backend::gemm_4bit_panel_bytes) / (p.k * static_cast<int64_t>(A.element_size()));
  const int64_t panel = std::min(p.n, std::max(step, wanted / step * step));
  const auto dequantized = [&](int64_t first, int64_t rows) {
    const int64_t at = first * p.k;
    Tensor weight = empty(Shape{rows, p.k}, dtype, A);
    call(&Backend::dequantize_blockwise, dtype_of(dtype), data_type, static_cast<const float*>(nullptr),
         static_cast<const uint8_t*>(B.data_ptr()) + at / 2, static_cast<const float*>(absmax.data_ptr()) + at / blocksize,
         weight.data_ptr(), blocksize, rows * p.k);
    return weight;
  };
  if (panel == p.n) return aten("aten::linear", "", A, dequantized(0, p.n), bias);
  Tensor out = empty(p.out_shape, dtype, A);
  for (int64_t first = 0; first < p.n; first += panel) {
    const int64_t rows = std::min(panel, p.n - first);
    const auto part = bias ? std::optional(aten("aten::slice", "Tensor", *bias, int64_t{0}, std::optional(first),
                                                std::optional(first + rows), int64_t{1}))
                           : std::nullopt;
    Tensor columns = aten("aten::slice", "Tensor", out, A.dim() - 1, std::optional(first), std::optional(first + rows), int64_t{1});
    torch::stable::copy_(columns, aten("aten::linear", "", A, dequantized(first, rows), part));
  }
  return out;
}

Tensor gemm_4bit(Tensor A, Tensor B, Shape shapeB, Tensor absmax, int64_t blocksize, std::string quant_type,
                 std::optional<Tensor> bias, std::optional<Tensor> absmax_8bit, std::optional<Tensor> absmax_code,
                 std::optional<Tensor> absmax_offset) {
  constexpr const char* op = "gemm_4bit";
  const Problem p = check_product(op, A, B, shapeB, blocksize);
  const int data_type = check_quant_type(op, quant_type);
  const int64_t blocks = ceil_div(p.n * p.k, blocksize);
  const Nested nested = check_statistics(op, A, absmax, absmax_8bit, absmax_code, absmax_offset, blocks);
  if (bias) {
    check_dtype(op, "bias", *bias, A.scalar_type());
    check_device(op, "bias", *bias, A);
    check_shape(op, "bias", *bias, Shape{p.n});
    bias = dense(*bias);
  }
  if (p.m == 0 || p.n == 0) return empty(p.out_shape, A.scalar_type(), A);
  const Tensor codes = dense(B), scales = dense(absmax);
  const Call call(op, A);
  if (p.m > call.ask(&Backend::gemm_4bit_max_rows, dtype_of(A.scalar_type())) && p.k > 0) {
    const Tensor flat = absmax_8bit ? flat_absmax(op, scales, nested, blocks) : scales;
    return gemm_by_panels(op, p, A, codes, flat, blocksize, data_type, bias);
  }
  const Tensor x = dense(A);
  Tensor out = empty(p.out_shape, A.scalar_type(), A);
  const BnbStatistics statistics = nested.with(scales);
  const auto run = [&](auto function, auto... scratch) {
    call(function, dtype_of(A.scalar_type()), p.m, p.n, p.k, static_cast<const void*>(x.data_ptr()),
         static_cast<const uint8_t*>(codes.data_ptr()), &statistics, static_cast<const float*>(nullptr), data_type, out.data_ptr(),
         p.k, p.k, p.n, blocksize, static_cast<const void*>(bias ? bias->data_ptr() : nullptr), scratch...);
  };
  if (p.m == 1) {
    run(&Backend::gemv_4bit_inference);
  } else {
    // Freed when this returns, and used again by the allocator only for what the same queue does later.
    const Tensor scratch = empty(Shape{call.ask(&Backend::gemm_4bit_scratch, p.m, p.k)}, ScalarType::Byte, A);
    run(&Backend::gemm_4bit_inference, scratch.numel() ? scratch.data_ptr() : nullptr);
  }
  return out;
}

BNB_OPERATOR("gemm_4bit", gemm_4bit);

}  // namespace
}  // namespace bnb
