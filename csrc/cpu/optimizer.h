// What the CPU's optimizers share, 32-bit and 8-bit: the numbers of a step.
#pragma once
#include <limits>

#include "../optimizers.h"
#include "lanes.h"

namespace bnb::cpu {

struct Step {
  float beta1, beta2, beta3, alpha, eps;
  float decay;         // weight decay
  float correction1;   // 1 - beta1^step
  float correction2;   // sqrt(1 - beta2^step)
  float lr, gnorm_scale;
  float update_scale;  // the trust ratio
  bool first;          // step is 1
  bool skip_zeros;     // elements whose gradient is 0 stay as they are
};

inline Step step_of(const BnbOptimizerStep& s) {
  const Corrections corrections(s);
  // clang-format off
  return {s.beta1, s.beta2, s.beta3, s.alpha, s.eps, s.weight_decay, corrections.first, corrections.second,
          s.lr, s.gnorm_scale, 1.0f, s.step == 1, s.skip_zeros != 0};
  // clang-format on
}

}  // namespace bnb::cpu
