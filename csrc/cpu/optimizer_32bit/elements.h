// The walk through elements, for every instruction set: included like lanes_<isa>.h, after it and optimizer_step.h.

// kLanes elements.
template <class T, Optimizer OPTIMIZER>
BNB_INLINE void update_lanes(const Step& step, const T* g, T* p, float* state1, float* state2, float* state3) {
  constexpr bool kTwo = has_two_states(OPTIMIZER), kThree = OPTIMIZER == ADEMAMIX;
  Lanes x = load(p), s1 = load(state1), s2 = broadcast(0), s3 = broadcast(0);
  if constexpr (kTwo) s2 = load(state2);
  if constexpr (kThree) s3 = load(state3);
  update<T, OPTIMIZER, 32>(step, load(g), x, s1, s2, s3);
  store(p, x);
  store(state1, s1);
  if constexpr (kTwo) store(state2, s2);
  if constexpr (kThree) store(state3, s3);
}

template <class T, Optimizer OPTIMIZER>
void update_elements(const Optimizer32bit& o, int64_t first, int64_t last) {
  const Step step = o.step;
  const T* const g = static_cast<const T*>(o.g);
  T* const p = static_cast<T*>(o.p);
  const auto at = [](float* states, int64_t i) { return states ? states + i : nullptr; };
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes)
    update_lanes<T, OPTIMIZER>(step, g + i, p + i, o.state1 + i, at(o.state2, i), at(o.state3, i));
  if (i == last) return;
  T rest_g[kLanes] = {}, rest_p[kLanes] = {};
  float rest[3][kLanes] = {};
  float* const states[3] = {o.state1, o.state2, o.state3};
  const auto count = static_cast<size_t>(last - i);
  __builtin_memcpy(rest_g, g + i, count * sizeof(T));
  __builtin_memcpy(rest_p, p + i, count * sizeof(T));
  for (int s = 0; s < 3; s++)
    if (states[s]) __builtin_memcpy(rest[s], states[s] + i, count * sizeof(float));
  update_lanes<T, OPTIMIZER>(step, rest_g, rest_p, rest[0], rest[1], rest[2]);
  __builtin_memcpy(p + i, rest_p, count * sizeof(T));
  for (int s = 0; s < 3; s++)
    if (states[s]) __builtin_memcpy(states[s] + i, rest[s], count * sizeof(float));
}

// What each of kLanes elements adds to the norm's square.
template <class T, Optimizer OPTIMIZER>
BNB_INLINE Lanes norm_term(const Step& s, const T* g, const float* state1, const float* state2) {
  const Lanes s1 = load(state1);
  if constexpr (OPTIMIZER == ADEMAMIX) return s1;
  const Lanes x = load(g) * s.gnorm_scale;
  if constexpr (OPTIMIZER == LION) return s1 * s.beta2 + (1 - s.beta2) * x;
  Lanes update;
  if constexpr (OPTIMIZER == ADAM) {
    const Lanes first = s1 * s.beta1 + (1 - s.beta1) * x, second = load(state2) * s.beta2 + (1 - s.beta2) * x * x;
    update = first / s.correction1 / (square_root(second) / s.correction2 + s.eps);
  } else if constexpr (OPTIMIZER == MOMENTUM) {
    update = s.first ? x : s1 * s.beta1 + x;
  } else if constexpr (OPTIMIZER == RMSPROP) {
    update = x / (square_root(s1 * s.beta1 + (1 - s.beta1) * x * x) + s.eps);
  } else {
    update = x / (square_root(s1 + x * x) + s.eps);
  }
  return update * update;
}

template <class T, Optimizer OPTIMIZER>
float norm2_of(const Optimizer32bit& o, int64_t first, int64_t last) {
  const Step step = o.step;
  const T* const g = static_cast<const T*>(o.g);
  Lanes total = broadcast(0);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes)
    total += norm_term<T, OPTIMIZER>(step, g + i, o.state1 + i, o.state2 ? o.state2 + i : nullptr);
  float result = sum(total);
  if (i < last) {
    T rest_g[kLanes] = {};
    float rest1[kLanes] = {}, rest2[kLanes] = {}, terms[kLanes];
    const auto count = static_cast<size_t>(last - i);
    __builtin_memcpy(rest_g, g + i, count * sizeof(T));
    __builtin_memcpy(rest1, o.state1 + i, count * sizeof(float));
    if (o.state2) __builtin_memcpy(rest2, o.state2 + i, count * sizeof(float));
    store(terms, norm_term<T, OPTIMIZER>(step, rest_g, rest1, rest2));
    for (size_t j = 0; j < count; j++) result += terms[j];
  }
  return result;
}

void run_update(const Optimizer32bit& o, int64_t first, int64_t last) {
  with_dtype(o.dtype, [&](auto zero) {
    with_optimizer(o.optimizer, [&]<Optimizer OPTIMIZER>() { update_elements<decltype(zero), OPTIMIZER>(o, first, last); });
  });
}

float run_norm2(const Optimizer32bit& o, int64_t first, int64_t last) {
  float result = 0;
  with_dtype(o.dtype, [&](auto zero) {
    with_optimizer(o.optimizer, [&]<Optimizer OPTIMIZER>() { result = norm2_of<decltype(zero), OPTIMIZER>(o, first, last); });
  });
  return result;
}

constexpr Optimizer32bitKernels kKernels{&run_update, &run_norm2};
