#include "optimizer_32bit.h"

namespace bnb::cpu {

constinit Slot<Optimizer32bitKernels> optimizer_32bit{"optimizer_32bit"};

namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 13;

// Parts of one size are added up each for itself and then in order: the result does not depend on the threads.
float find_norm2(const Optimizer32bit& call, float* parts, int64_t n, void* queue) {
  const int64_t part = std::max<int64_t>(ceil_div(n, BNB_UNORM_SCRATCH), 1024), count = ceil_div(n, part);
  const auto norm2 = optimizer_32bit.best().norm2;
  parallel_for(queue, count, std::max<int64_t>(1, kGrain / part), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) parts[i] = norm2(call, i * part, std::min(n, (i + 1) * part));
  });
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += parts[i];
  return static_cast<float>(total);
}

// The trust ratio: how much of the update fits into `limit`.
float trust_ratio(float norm2, float limit) {
  const float norm = std::sqrt(norm2);
  return norm > limit ? limit / norm : 1.0f;
}

}  // namespace
}  // namespace bnb::cpu

int coptimizer32bit(int dtype, int optimizer, const void* g, void* p, float* state1, float* state2, float* unorm, float* scratch,
                    const BnbOptimizerStep* step, int64_t n, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (n <= 0) return;
    with_dtype(dtype, [](auto) {});
    Optimizer32bit call{dtype, optimizer, step_of(*step), g, p, state1, nullptr, nullptr};
    bnb::with_optimizer(optimizer, [&]<bnb::Optimizer OPTIMIZER>() {
      if constexpr (bnb::has_two_states(OPTIMIZER)) call.state2 = state2;
      if constexpr (OPTIMIZER == bnb::ADEMAMIX) call.state3 = state1 + n;
    });
    // LION's limit is of the step before: bitsandbytes finds its norm after the update.
    const bool limited = step->max_unorm > 0, after = optimizer == BNB_LION;
    if (limited) {
      if (!after) *unorm = find_norm2(call, scratch, n, queue);
      const float norm2 = *unorm;
      const float limit = step->max_unorm * step->param_norm;
      if (optimizer == BNB_ADAM)
        call.step.update_scale = trust_ratio(norm2, limit);
      else if (optimizer != BNB_ADEMAMIX)
        call.step.update_scale = trust_ratio(norm2, limit + step->eps);
    }
    const auto update = optimizer_32bit.best().update;
    parallel_for(queue, n, kGrain, [&](int64_t first, int64_t last) { update(call, first, last); });
    if (limited && after) *unorm = find_norm2(call, scratch, n, queue);
  });
}
