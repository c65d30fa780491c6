// int8_vectorwise_dequant on CPUs: out[r, c] = A[r, c] * stats[r * stride] / 127, each product rounded to fp32.
#pragma once
#include "../../int8_scales.h"
#include "../cpu.h"

namespace bnb::cpu {

struct VectorDequant {
  int dtype;
  const int8_t* A;
  const float* stats;
  void* out;
  int64_t stride, cols;
};
// Rows first to last.
using VectorDequantRows = void (*)(const VectorDequant&, int64_t first, int64_t last);
extern Slot<VectorDequantRows> int8_vectorwise_dequant;

}  // namespace bnb::cpu
