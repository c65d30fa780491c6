// What the launches of both kinds of optimizers share.
#pragma once
#include "../optimizers.h"
#include "runtime.h"

namespace bnb {

constexpr const char* name_of(Optimizer optimizer) {
  switch (optimizer) {
    case ADAM: return "ADAM";
    case MOMENTUM: return "MOMENTUM";
    case RMSPROP: return "RMSPROP";
    case ADAGRAD: return "ADAGRAD";
    case LION: return "LION";
    case ADEMAMIX: return "ADEMAMIX";
  }
  return nullptr;
}

// Calls body.template operator()<T, OPTIMIZER>() for every dtype and optimizer.
template <class Body>
void for_every_optimizer(Body&& body) {
  for (int dtype : {BNB_FLOAT16, BNB_BFLOAT16, BNB_FLOAT32})
    for (int optimizer : {BNB_ADAM, BNB_MOMENTUM, BNB_RMSPROP, BNB_ADAGRAD, BNB_LION, BNB_ADEMAMIX})
      with_dtype(dtype, [&](auto zero) {
        with_optimizer(optimizer, [&]<Optimizer OPTIMIZER>() { body.template operator()<decltype(zero), OPTIMIZER>(); });
      });
}

}  // namespace bnb
