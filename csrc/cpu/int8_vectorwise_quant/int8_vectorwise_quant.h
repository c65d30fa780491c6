// Quantisation to int8 by rows and by columns on CPUs, with outliers left out: LLM.int8(). What is computed stands in
// csrc/xpu_kernels/int8_vectorwise_quant.cpp.
#pragma once
#include "../cpu.h"

namespace bnb::cpu {

// 127 / top as CUDA's fast instruction has it. Zero for infinity; infinity for zero, and for less than 127 times what
// fp32 can hold.
float scale_of_row(float top);

struct VectorQuant {
  int dtype;
  const void* A;
  int8_t* out;
  float* stats;       // of rows, or of columns
  uint8_t* outliers;  // a byte for each column, zero before; null for no threshold
  float threshold;    // rounded to dtype
  int64_t rows, cols;
};
struct VectorQuantKernels {
  // Rows first to last by their maximum.
  void (*rows)(const VectorQuant&, int64_t first, int64_t last);
  // tops[c] = max |A[r, c]| of rows first to last, without outliers (from threshold on, if that is not 0); NaN is largest.
  void (*maxima)(const VectorQuant&, int64_t first, int64_t last, float* tops);
  // Rows first to last by the columns' maxima in `stats`.
  void (*columns)(const VectorQuant&, int64_t first, int64_t last);
};
extern Slot<VectorQuantKernels> int8_vectorwise_quant;

}  // namespace bnb::cpu
