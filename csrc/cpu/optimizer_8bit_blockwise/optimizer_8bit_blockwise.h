// Optimizers with 8-bit states on CPUs: a block is dequantised, updated, and quantised again while it is in the cache.
#pragma once
#include "../optimizer.h"

namespace bnb::cpu {

constexpr int kStateBlock = 256;

// A map of states, and where its codes change: at the midpoints.
struct StateMap {
  alignas(64) float value[256];
  Thresholds thresholds;
  int first_nonnegative;  // code

  StateMap(const float* quantiles, int64_t n);  // for n states
};

struct Optimizer8bit {
  int dtype, optimizer;
  Step step;
  void* p;
  const void* g;
  uint8_t *state1, *state2, *state3;  // state3: the second row of ADEMAMIX's state1
  float *absmax1, *absmax2, *absmax3;
  const StateMap *map1, *map2;
  int64_t n;
};
// Blocks first to last.
using UpdateBlocks = void (*)(const Optimizer8bit&, int64_t first, int64_t last);
extern Slot<UpdateBlocks> optimizer_8bit_blockwise;

}  // namespace bnb::cpu
