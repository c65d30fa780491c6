// int8_mm_dequant on CPUs: out = A * row_stats * col_stats / 127² + bias + addend, in fp32, rounded once.
#pragma once
#include "../../int8_scales.h"
#include "../cpu.h"

namespace bnb::cpu {

struct MmDequant {
  int dtype;  // of out and addend
  const int32_t* A;
  const float *row_stats, *col_stats;
  void* out;
  const void* bias;
  int bias_dtype;
  const void* addend;
  int64_t cols;
};
// Rows first to last.
using MmDequantRows = void (*)(const MmDequant&, int64_t first, int64_t last);
extern Slot<MmDequantRows> int8_mm_dequant;

}  // namespace bnb::cpu
