// gemm_4bit_transposed, of the namespace bitsandbytes_intel: the gradient of gemm_4bit's A. CPU alone.
#include "dot_4bit.h"

namespace bnb {
namespace {

Tensor gemm_4bit_transposed(Tensor A, Tensor B, Shape shapeB, Tensor absmax, int64_t blocksize, std::string quant_type,
                            std::optional<Tensor> absmax_8bit, std::optional<Tensor> absmax_code,
                            std::optional<Tensor> absmax_offset) {
  constexpr const char* op = "gemm_4bit_transposed";
  const Problem p = check_product(op, A, B, shapeB, blocksize, true);
  const int data_type = check_quant_type(op, quant_type);
  const Nested nested = check_statistics(op, A, absmax, absmax_8bit, absmax_code, absmax_offset, ceil_div(p.n * p.k, blocksize));
  Tensor out = empty(p.out_shape, A.scalar_type(), A);
  if (p.m == 0 || p.k == 0) return out;
  const Tensor x = dense(A), codes = dense(B), scales = dense(absmax);
  const BnbStatistics statistics = nested.with(scales);
  Call(op, A)(&Backend::gemm_4bit_transposed, dtype_of(A.scalar_type()), p.m, p.n, p.k, static_cast<const void*>(x.data_ptr()),
              static_cast<const uint8_t*>(codes.data_ptr()), &statistics, data_type, out.data_ptr(), p.n, p.k, p.k, blocksize);
  return out;
}

BNB_OPERATOR("bitsandbytes_intel::gemm_4bit_transposed", gemm_4bit_transposed);

}  // namespace
}  // namespace bnb
