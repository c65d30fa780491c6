// What gemv_4bit and gemm_4bit check alike.
#pragma once

#include "common.h"

namespace bnb {

// A [m, k] times B [n, k] transposed.
struct Problem {
  int64_t m, n, k;
  Shape out_shape;
};

inline Problem check_product(const char* op, const Tensor& A, const Tensor& B, const Shape& shapeB, int64_t blocksize) {
  check_float(op, "A", A);
  check_4bit_blocksize(op, blocksize);
  if (shapeB.size() != 2) fail(op, ": shapeB must be [N, K], got ", text_of(shapeB));
  const int64_t weights = check_numel_of(op, "shapeB", shapeB);
  if (A.dim() == 0 || A.size(A.dim() - 1) != shapeB[1])
    fail(op, ": A must be of shape [..., ", shapeB[1], "] to match shapeB ", text_of(shapeB), ", got ", text_of(A.sizes()));
  check_packed(op, "B", B, weights);
  check_device(op, "B", B, A);
  int64_t m = 1;
  for (int64_t i = 0; i + 1 < A.dim(); i++) m *= A.size(i);
  return {m, shapeB[0], shapeB[1], with_last(A, shapeB[0])};
}

inline void check_absmax(const char* op, const Tensor& absmax, int64_t count, const char* why, const Tensor& A) {
  check_dtype(op, "absmax", absmax, ScalarType::Float);
  check_device(op, "absmax", absmax, A);
  check_numel(op, "absmax", absmax, count, why);
}

}  // namespace bnb
