// gemv_4bit and its .out variant.
#include "dot_4bit.h"

namespace bnb {
namespace {

// bitsandbytes' layout of a weight for its own kernel on CPUs with AVX512-BF16: absmax bfloat16 [K / blocksize, N]; codes
// by 32 rows and two columns, in whose 32 bytes byte t holds row t / 2 (low half) and 16 + t / 2 (high), column t % 2.
constexpr int64_t kRepackedRows = 32;

bool is_repacked(const Tensor& A, const Tensor& absmax, const Problem& p, int64_t blocksize) {
  return absmax.defined() && absmax.scalar_type() == ScalarType::BFloat16 && is_on_cpu(A) && is_on_cpu(absmax) &&
         p.n % kRepackedRows == 0 && p.k % blocksize == 0 && absmax.dim() == 2 && absmax.size(0) == p.k / blocksize &&
         absmax.size(1) == p.n;
}

// Back to codes [N, K / 2] and absmax float32 [N, K / blocksize].
std::pair<Tensor, Tensor> unpacked(const Tensor& B, const Tensor& absmax, const Problem& p, int64_t blocksize) {
  const Tensor codes = dense(B), scales = dense(absmax);
  const int64_t pairs = p.k / 2, blocks = p.k / blocksize;
  Tensor flat = empty({p.n, pairs}, ScalarType::Byte, B), exact = empty({p.n, blocks}, ScalarType::Float, B);
  const auto* from = static_cast<const uint8_t*>(codes.data_ptr());
  auto* to = static_cast<uint8_t*>(flat.data_ptr());
  for (int64_t first = 0; first < p.n; first += kRepackedRows)
    for (int64_t pair = 0; pair < pairs; pair++, from += kRepackedRows)
      for (int64_t row = 0; row < kRepackedRows / 2; row++) {
        const uint8_t even = from[2 * row], odd = from[2 * row + 1];
        to[(first + row) * pairs + pair] = static_cast<uint8_t>(even << 4 | (odd & 15));
        to[(first + kRepackedRows / 2 + row) * pairs + pair] = static_cast<uint8_t>((even & 0xF0) | odd >> 4);
      }
  const auto* rounded = static_cast<const uint16_t*>(scales.data_ptr());
  auto* wide = static_cast<uint32_t*>(exact.data_ptr());
  for (int64_t block = 0; block < blocks; block++)
    for (int64_t row = 0; row < p.n; row++) wide[row * blocks + block] = static_cast<uint32_t>(rounded[block * p.n + row]) << 16;
  return {flat, exact};
}

Problem check_gemv(const char* op, const Tensor& A, const Tensor& B, const Shape& shapeB, const Tensor& absmax, const Tensor& code,
                   int64_t blocksize) {
  Problem p = check_product(op, A, B, shapeB, blocksize);
  if (is_repacked(A, absmax, p, blocksize))
    check_device(op, "absmax", absmax, A);
  else if (absmax.defined() && absmax.scalar_type() == ScalarType::BFloat16 && is_on_cpu(A))
    fail(op, ": absmax must be float32, or [K / blocksize, N] of a weight that Linear4bit repacked on a CPU with AVX512-BF16",
         " (N a multiple of 32, K of blocksize), got bfloat16 ", text_of(absmax.sizes()));
  else
    check_absmax(op, absmax, ceil_div(p.n * p.k, blocksize), "one for each block", A);
  check_dtype(op, "code", code, ScalarType::Float);
  check_device(op, "code", code, A);
  check_numel(op, "code", code, 16, "one for each 4-bit code");
  return p;
}

void run_gemv(const char* op, const Problem& p, const Tensor& A, const Tensor& B, const Tensor& absmax, const Tensor& code,
              int64_t blocksize, const Tensor& out) {
  if (p.m == 0 || p.n == 0) return;
  if (is_repacked(A, absmax, p, blocksize)) {
    const auto [flat, exact] = unpacked(B, absmax, p, blocksize);
    return run_gemv(op, p, A, flat, exact, code, blocksize, out);
  }
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
