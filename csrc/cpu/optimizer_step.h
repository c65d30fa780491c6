// One step of each optimizer for kLanes elements, in fp32: included like lanes_<isa>.h, after it. The numbers are
// bitsandbytes'.

BNB_INLINE Lanes decayed(const Step& s, Lanes p) { return s.decay > 0 ? p * (1 - s.lr * s.decay) : p; }

// ADAM (state1, state2) and ADEMAMIX (state1, state3 and state2). g is scaled already.
template <Optimizer OPTIMIZER>
BNB_INLINE void update_2state(const Step& s, Lanes g, Lanes& p, Lanes& state1, Lanes& state2, Lanes& state3) {
  state1 = state1 * s.beta1 + (1 - s.beta1) * g;
  state2 = state2 * s.beta2 + (1 - s.beta2) * g * g;
  if constexpr (OPTIMIZER == ADEMAMIX) {
    state3 = state3 * s.beta3 + (1 - s.beta3) * g;
    p -= s.lr * ((state1 / s.correction1 + s.alpha * state3) / (square_root(state2) / s.correction2 + s.eps));
  } else {
    const float step_size = s.lr * s.correction2 / s.correction1;
    p -= s.update_scale * step_size * (state1 / (square_root(state2) + s.eps * s.correction2));
  }
  p = decayed(s, p);
}

// MOMENTUM, RMSPROP, ADAGRAD and LION. g is scaled already. `numerator` is what RMSPROP and ADAGRAD divide: with 32-bit
// states the gradient with weight decay in it (null), with 8-bit states the gradient as it came. LION's parameter is
// rounded to its dtype T after the decay too, as bitsandbytes' kernels do.
template <class T, Optimizer OPTIMIZER>
BNB_INLINE void update_1state(const Step& s, Lanes g, const Lanes* numerator, Lanes& p, Lanes& state1) {
  if constexpr (OPTIMIZER == LION) {
    const Lanes direction = state1 * s.beta1 + (1 - s.beta1) * g, zero = broadcast(0);
    const Lanes sign = direction > zero ? broadcast(1) : direction < zero ? broadcast(-1) : zero;
    p = rounded<T>(decayed(s, p)) - s.update_scale * s.lr * sign;
    state1 = state1 * s.beta2 + (1 - s.beta2) * g;
  } else {
    if (s.decay > 0) g += p * s.decay;
    const Lanes above = numerator ? *numerator : g;
    if constexpr (OPTIMIZER == MOMENTUM) {
      state1 = s.first ? g : state1 * s.beta1 + g;
      p -= s.update_scale * s.lr * state1;
    } else if constexpr (OPTIMIZER == RMSPROP) {
      state1 = state1 * s.beta1 + (1 - s.beta1) * g * g;
      p -= s.update_scale * s.lr * (above / (square_root(state1) + s.eps));
    } else {
      static_assert(OPTIMIZER == ADAGRAD);
      state1 = state1 + g * g;
      p -= s.lr * (above / (square_root(state1) + s.eps));  // bitsandbytes applies no trust ratio here
    }
  }
}

// A step with states of so many bits. With 8 bits, gradients that are no numbers leave the parameter of ADAM and ADEMAMIX
// alone, and their states become 0.
template <class T, Optimizer OPTIMIZER, int BITS>
BNB_INLINE void update(const Step& s, Lanes g, Lanes& p, Lanes& state1, Lanes& state2, Lanes& state3) {
  Lanes q = p, t1 = state1, t2 = state2, t3 = state3;
  const Lanes scaled = g * s.gnorm_scale;
  if constexpr (has_two_states(OPTIMIZER)) {
    update_2state<OPTIMIZER>(s, scaled, q, t1, t2, t3);
    if constexpr (BITS == 8) {
      const Lanes zero = broadcast(0), bound = broadcast(std::numeric_limits<float>::infinity()), size = magnitude(g);
      q = size < bound ? q : p;
      t1 = size < bound ? t1 : zero, t2 = size < bound ? t2 : zero, t3 = size < bound ? t3 : zero;
    }
  } else {
    update_1state<T, OPTIMIZER>(s, scaled, BITS == 8 ? &g : nullptr, q, t1);
  }
  if (s.skip_zeros) {
    const Lanes zero = broadcast(0);
    q = g == zero ? p : q;
    t1 = g == zero ? state1 : t1, t2 = g == zero ? state2 : t2, t3 = g == zero ? state3 : t3;
  }
  p = q, state1 = t1, state2 = t2, state3 = t3;
}
