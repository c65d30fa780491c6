// One step of each optimizer for one element, in fp32. 32-bit and 8-bit states share it.
#pragma once
#include "device.h"

namespace bnb {

// LAMB is ADAM and LARS is MOMENTUM, with a limit to the norm of the update. The numbers are bitsandbytes'.
enum Optimizer { ADAM = 0, MOMENTUM = 1, RMSPROP = 2, ADAGRAD = 4, LION = 5, ADEMAMIX = 6 };

// What a step is made of. The kernels take these as scalars, in this order.
struct Step {
  float beta1, beta2, beta3, alpha, eps;
  float decay;         // weight decay
  float correction1;   // 1 - beta1^step
  float correction2;   // sqrt(1 - beta2^step)
  bool first;          // step is 1
  float lr;
  float update_scale;  // the trust ratio
};

BNB_INLINE bool finite(float x) { return (bits_as<u32>(x) & 0x7fffffff) < 0x7f800000; }
// Root and quotient within the few units in the last place that OpenCL, and so an Intel GPU, has by default; in PTX the
// operators mean correctly rounded ones, which cost several times as much.
BNB_INLINE float square_root(float x) {
#ifdef __NVPTX__
  return __nvvm_sqrt_approx_f(x);
#else
  return __builtin_elementwise_sqrt(x);
#endif
}
BNB_INLINE float quotient(float a, float b) {
#ifdef __NVPTX__
  float result;
  asm("div.full.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a / b;
#endif
}
BNB_INLINE float sign_of(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f; }
// p after decoupled weight decay.
BNB_INLINE float decayed(const Step& s, float p) { return s.decay > 0 ? p * (1 - s.lr * s.decay) : p; }

// ADAM (state1, state2) and ADEMAMIX (state1, state3 and state2). g is scaled already.
template <int OPTIMIZER>
BNB_INLINE void update_2state(const Step& s, float g, float& p, float& state1, float& state2, float& state3) {
  state1 = state1 * s.beta1 + (1 - s.beta1) * g;
  state2 = state2 * s.beta2 + (1 - s.beta2) * g * g;
  if constexpr (OPTIMIZER == ADEMAMIX) {
    state3 = state3 * s.beta3 + (1 - s.beta3) * g;
    p -= s.lr * quotient(quotient(state1, s.correction1) + s.alpha * state3, quotient(square_root(state2), s.correction2) + s.eps);
  } else {
    const float step_size = s.lr * s.correction2 / s.correction1;
    p -= s.update_scale * step_size * quotient(state1, square_root(state2) + s.eps * s.correction2);
  }
  p = decayed(s, p);
}

// MOMENTUM, RMSPROP, ADAGRAD and LION. g is scaled already. `numerator` is what RMSPROP and ADAGRAD divide: with 32-bit
// states the gradient with weight decay in it (null), with 8-bit states the gradient as it came. LION's parameter is
// rounded to its dtype T after the decay too, as bitsandbytes' kernels do.
template <class T, int OPTIMIZER>
BNB_INLINE void update_1state(const Step& s, float g, const float* numerator, float& p, float& state1) {
  if constexpr (OPTIMIZER == LION) {
    p = to_float(from_float<T>(decayed(s, p))) - s.update_scale * s.lr * sign_of(state1 * s.beta1 + (1 - s.beta1) * g);
    state1 = state1 * s.beta2 + (1 - s.beta2) * g;
  } else {
    if (s.decay > 0) g += p * s.decay;
    const float above = numerator ? *numerator : g;
    if constexpr (OPTIMIZER == MOMENTUM) {
      state1 = s.first ? g : state1 * s.beta1 + g;
      p -= s.update_scale * s.lr * state1;
    } else if constexpr (OPTIMIZER == RMSPROP) {
      state1 = state1 * s.beta1 + (1 - s.beta1) * g * g;
      p -= s.update_scale * s.lr * quotient(above, square_root(state1) + s.eps);
    } else {
      static_assert(OPTIMIZER == ADAGRAD);
      state1 = state1 + g * g;
      p -= s.lr * quotient(above, square_root(state1) + s.eps);  // bitsandbytes applies no trust ratio here
    }
  }
}

}  // namespace bnb
