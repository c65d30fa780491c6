// What gemv_4bit and gemm_4bit check alike.
#pragma once

#include "common.h"

namespace bnb {

// A [m, k] times B [n, k] transposed.
struct Problem {
  int64_t m, n, k;
  Shape out_shape;
};

// A's last dimension is K, or of the transposed product A [m, n] times B [n, k], N.
inline Problem check_product(const char* op, const Tensor& A, const Tensor& B, const Shape& shapeB, int64_t blocksize,
                             bool transposed = false) {
  check_float(op, "A", A);
  check_4bit_blocksize(op, blocksize);
  if (shapeB.size() != 2) fail(op, ": shapeB must be [N, K], got ", text_of(shapeB));
  const int64_t weights = check_numel_of(op, "shapeB", shapeB);
  const int64_t inner = shapeB[transposed ? 0 : 1], outer = shapeB[transposed ? 1 : 0];
  if (A.dim() == 0 || A.size(A.dim() - 1) != inner)
    fail(op, ": A must be of shape [..., ", inner, "] to match shapeB ", text_of(shapeB), ", got ", text_of(A.sizes()));
  check_packed(op, "B", B, weights);
  check_device(op, "B", B, A);
  int64_t m = 1;
  for (int64_t i = 0; i + 1 < A.dim(); i++) m *= A.size(i);
  return {m, shapeB[0], shapeB[1], with_last(A, outer)};
}

inline void check_absmax(const char* op, const Tensor& absmax, int64_t count, const char* why, const Tensor& A) {
  check_dtype(op, "absmax", absmax, ScalarType::Float);
  check_device(op, "absmax", absmax, A);
  check_numel(op, "absmax", absmax, count, why);
}

// Statistics that are themselves quantised; nothing of it where they are not.
struct Nested {
  std::optional<Tensor> absmax_8bit, absmax_code, absmax_offset;

  BnbStatistics with(const Tensor& absmax) const {
    const auto pointer = [](const std::optional<Tensor>& t) { return t ? t->data_ptr() : nullptr; };
    return {static_cast<const float*>(absmax.data_ptr()), static_cast<const uint8_t*>(pointer(absmax_8bit)),
            static_cast<const float*>(pointer(absmax_code)), static_cast<const float*>(pointer(absmax_offset))};
  }
};

// The three are given together, or none of them; what is returned is dense, and its offset is float32.
inline Nested check_statistics(const char* op, const Tensor& A, const Tensor& absmax, const std::optional<Tensor>& absmax_8bit,
                               const std::optional<Tensor>& absmax_code, const std::optional<Tensor>& absmax_offset,
                               int64_t blocks) {
  if (!absmax_8bit) {
    if (absmax_code || absmax_offset)
      fail(op, ": absmax_8bit must be given with ", absmax_code ? "absmax_code" : "absmax_offset", ", got None");
    check_absmax(op, absmax, blocks, "one for each block", A);
    return {};
  }
  if (!absmax_code) fail(op, ": absmax_code must be given with absmax_8bit, got None");
  if (!absmax_offset) fail(op, ": absmax_offset must be given with absmax_8bit, got None");
  check_absmax(op, absmax, ceil_div(blocks, 256), "one for each 256 blocks", A);
  check_dtype(op, "absmax_8bit", *absmax_8bit, ScalarType::Byte);
  check_device(op, "absmax_8bit", *absmax_8bit, A);
  check_numel(op, "absmax_8bit", *absmax_8bit, blocks, "one for each block");
  check_dtype(op, "absmax_code", *absmax_code, ScalarType::Float);
  check_device(op, "absmax_code", *absmax_code, A);
  check_numel(op, "absmax_code", *absmax_code, 256, "one for each value of a byte");
  check_float(op, "absmax_offset", *absmax_offset);
  check_device(op, "absmax_offset", *absmax_offset, A);
  if (absmax_offset->numel() != 1) fail(op, ": absmax_offset must have one element, got ", absmax_offset->numel());
  return {dense(*absmax_8bit), dense(*absmax_code),
          absmax_offset->scalar_type() == ScalarType::Float ? *absmax_offset
                                                            : torch::stable::to(*absmax_offset, std::optional(ScalarType::Float))};
}

}  // namespace bnb
