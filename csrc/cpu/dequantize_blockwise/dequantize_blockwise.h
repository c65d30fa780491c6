// dequantize_blockwise on CPUs: out[i] = code[A[i]] * absmax[i / blocksize], in fp32, rounded once.
#pragma once
#include "../cpu.h"

namespace bnb::cpu {

struct Dequantize {
  int dtype, data_type;
  const float* code;  // 16 values, or 256, aligned to 64 bytes
  const uint8_t* A;
  const float* absmax;
  void* out;
  int64_t blocksize, n;
  bool stream;  // write past the caches: the output is larger than they are, and aligned to 64 bytes
};
// Blocks first to last; also the last block of all, which may be short.
using DequantizeBlocks = void (*)(const Dequantize&, int64_t first, int64_t last);
extern Slot<DequantizeBlocks> dequantize_4bit, dequantize_8bit;

}  // namespace bnb::cpu
