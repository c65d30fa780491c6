// Optimizers with 32-bit states on CPUs: everything is read once and written once.
#pragma once
#include "../optimizer.h"

namespace bnb::cpu {

struct Optimizer32bit {
  int dtype, optimizer;
  Step step;
  const void* g;
  void* p;
  float *state1, *state2, *state3;  // state3: the second row of ADEMAMIX's state1
};
struct Optimizer32bitKernels {
  // Elements first to last.
  void (*update)(const Optimizer32bit&, int64_t first, int64_t last);
  // Their part of the square of the norm of the update that is to come; of ADEMAMIX the sum of its first state, of LION
  // that of its state after a step, as in bitsandbytes.
  float (*norm2)(const Optimizer32bit&, int64_t first, int64_t last);
};
extern Slot<Optimizer32bitKernels> optimizer_32bit;

}  // namespace bnb::cpu
