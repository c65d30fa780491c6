// What the host's side of the optimizers shares, for every device.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>

#include "xpu_ops/xpu_ops.h"

namespace bnb {

enum Optimizer {
  ADAM = BNB_ADAM,
  MOMENTUM = BNB_MOMENTUM,
  RMSPROP = BNB_RMSPROP,
  ADAGRAD = BNB_ADAGRAD,
  LION = BNB_LION,
  ADEMAMIX = BNB_ADEMAMIX
};

constexpr bool has_two_states(Optimizer optimizer) { return optimizer == ADAM || optimizer == ADEMAMIX; }

// Bias corrections of the two moving averages, of the betas as the kernels hold them.
struct Corrections {
  float first, second;
  explicit Corrections(const BnbOptimizerStep& s)
      : first(static_cast<float>(1 - std::pow(static_cast<double>(s.beta1), s.step))),
        second(static_cast<float>(std::sqrt(1 - std::pow(static_cast<double>(s.beta2), s.step)))) {}
};

// Calls body.template operator()<OPTIMIZER>() with the optimizer that a BnbOptimizer names.
template <class Body>
void with_optimizer(int optimizer, Body&& body) {
  switch (optimizer) {
    case BNB_ADAM: return body.template operator()<ADAM>();
    case BNB_MOMENTUM: return body.template operator()<MOMENTUM>();
    case BNB_RMSPROP: return body.template operator()<RMSPROP>();
    case BNB_ADAGRAD: return body.template operator()<ADAGRAD>();
    case BNB_LION: return body.template operator()<LION>();
    case BNB_ADEMAMIX: return body.template operator()<ADEMAMIX>();
  }
  throw std::invalid_argument("optimizer " + std::to_string(optimizer) + " is not one that bitsandbytes knows");
}

}  // namespace bnb
