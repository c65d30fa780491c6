#include "optimizer_8bit_blockwise.h"

namespace bnb::cpu {

constinit Slot<UpdateBlocks> optimizer_8bit_blockwise{"optimizer_8bit_blockwise"};

StateMap::StateMap(const float* quantiles, int64_t n) : first_nonnegative(0) {
  for (int i = 0; i < 256; i++) {
    value[i] = quantiles[i];
    thresholds.sorted[i] = i < 255 ? (quantiles[i] + quantiles[i + 1]) * 0.5f : 0;
    first_nonnegative += __builtin_signbit(quantiles[i]) != 0;
  }
  thresholds.arrange(n);
}

// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 12;

}  // namespace bnb::cpu

int coptimizer_static_8bit_blockwise(int dtype, int optimizer, void* p, const void* g, uint8_t* state1, uint8_t* state2,
                                     const float* quantiles1, const float* quantiles2, float* absmax1, float* absmax2,
                                     const BnbOptimizerStep* step, int64_t n, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    with_dtype(dtype, [](auto) {});
    const int64_t blocks = ceil_div(n, kStateBlock);
    const StateMap map1(quantiles1, n), map2(quantiles2 ? quantiles2 : quantiles1, quantiles2 ? n : 0);
    Optimizer8bit call{dtype,   optimizer, step_of(*step), p,       g,     state1, nullptr,
                       nullptr, absmax1,   nullptr,        nullptr, &map1, &map2,  n};
    bnb::with_optimizer(optimizer, [&]<bnb::Optimizer OPTIMIZER>() {
      if constexpr (bnb::has_two_states(OPTIMIZER)) call.state2 = state2, call.absmax2 = absmax2;
      if constexpr (OPTIMIZER == bnb::ADEMAMIX) call.state3 = state1 + n, call.absmax3 = absmax1 + blocks;
    });
    const auto run = optimizer_8bit_blockwise.best();
    parallel_for(queue, blocks, kGrain / kStateBlock, [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}
