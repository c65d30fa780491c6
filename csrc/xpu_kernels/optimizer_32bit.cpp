// Optimizers with 32-bit states: gradient, parameter and states are read once, parameter and states written once.
//
// With a limit to the norm of the update, a pass before it adds up that norm: every sub-group's sum goes to a place of
// its own and one sub-group adds those in order, so results do not depend on how the device schedules.
#include "optimizer.h"

namespace bnb {

// N values of lane `lane`, the neighbours of its own N.
template <int N, class T>
BNB_INLINE void load(const T* base, u32 lane, float (&x)[N]) {
  if constexpr (N == 1) {
    x[0] = to_float(base[lane]);
  } else {
    const auto values = reinterpret_cast<const pack<T, N>*>(base)[lane];
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = to_float(values.v[j]);
  }
}

template <int N, class T>
BNB_INLINE void store(T* base, u32 lane, const float (&x)[N]) {
  if constexpr (N == 1) {
    base[lane] = from_float<T>(x[0]);
  } else {
    pack<T, N> values;
#pragma unroll
    for (int j = 0; j < N; j++) values.v[j] = from_float<T>(x[j]);
    reinterpret_cast<pack<T, N>*>(base)[lane] = values;
  }
}

// Walks through the TILE_SIZE elements of this work-group: vector(base) takes the SUBG_SIZE * N elements from base on,
// all inside; scalar(i) one element. Without `wide` (pointers that are not aligned), everything goes by elements.
template <int TILE_SIZE, int N, int GROUP_SIZE, int SUBG_SIZE, class Vector, class Scalar>
BNB_INLINE void walk(i64 n, i32 wide, Vector&& vector, Scalar&& scalar) {
  constexpr int kSpan = SUBG_SIZE * N;
  constexpr int kStretch = TILE_SIZE / (GROUP_SIZE / SUBG_SIZE);
  static_assert(kStretch % kSpan == 0);
  // A sub-group of a CPU device has a stretch of its own; those of a GPU go side by side.
  constexpr bool kOwn = N == 1;
  const i64 tile = group_id() * TILE_SIZE;
  const u32 lane = lane_id();
  const auto base_of = [&](int t) __attribute__((always_inline)) {
    return kOwn ? tile + sub_group_id() * kStretch + t : tile + t * (GROUP_SIZE / SUBG_SIZE) + sub_group_id() * kSpan;
  };
  if (wide && tile + TILE_SIZE <= n) {
#pragma unroll 2
    for (int t = 0; t < kStretch; t += kSpan) vector(base_of(t));
  } else {
    for (int t = 0; t < kStretch; t += kSpan) {
      const i64 base = base_of(t);
      for (int s = 0; s < kSpan; s += SUBG_SIZE)
        if (base + s + lane < n) scalar(base + s + lane);
    }
  }
}

// The trust ratio: how much of the update fits into `limit`. `norm2` is the square of the update's norm.
BNB_INLINE float trust_ratio(const float* norm2, float max_unorm, float limit) {
  if (!(max_unorm > 0)) return 1;
  const float norm = square_root(*norm2);
  return norm > limit ? limit / norm : 1.0f;
}

template <class T, int OPTIMIZER, int TILE_SIZE, int NUM_PER_TH, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kOptimizer32bit2State(const T* g, T* p, float* state1, float* state2, const float* unorm, float max_unorm, float param_norm,
                      float beta1, float beta2, float beta3, float alpha, float eps, float weight_decay, float correction1,
                      float correction2, float lr, float gnorm_scale, i32 skip_zeros, i32 wide, i64 n) {
  static_assert(OPTIMIZER == ADAM || OPTIMIZER == ADEMAMIX);
  constexpr int N = NUM_PER_TH;
  const float scale = OPTIMIZER == ADAM ? trust_ratio(unorm, max_unorm, max_unorm * param_norm) : 1.0f;
  const Step step{beta1, beta2, beta3, alpha, eps, weight_decay, correction1, correction2, false, lr, scale};
  float* const state3 = state1 + n;  // ADEMAMIX: the second row of state1
  const auto one = [&](float g, float& p, float& s1, float& s2, float& s3) __attribute__((always_inline)) {
    float q = p, t1 = s1, t2 = s2, t3 = s3;
    update_2state<OPTIMIZER>(step, g * gnorm_scale, q, t1, t2, t3);
    const bool keep = skip_zeros && g == 0;
    p = keep ? p : q, s1 = keep ? s1 : t1, s2 = keep ? s2 : t2, s3 = keep ? s3 : t3;
  };
  walk<TILE_SIZE, N, GROUP_SIZE, SUBG_SIZE>(n, wide, [&](i64 base) __attribute__((always_inline)) {
    const u32 lane = lane_id();
    float gs[N], ps[N], s1[N], s2[N], s3[N] = {};
    load<N>(g + base, lane, gs);
    load<N>(p + base, lane, ps);
    load<N>(state1 + base, lane, s1);
    load<N>(state2 + base, lane, s2);
    if constexpr (OPTIMIZER == ADEMAMIX) load<N>(state3 + base, lane, s3);
#pragma unroll
    for (int j = 0; j < N; j++) one(gs[j], ps[j], s1[j], s2[j], s3[j]);
    store<N>(p + base, lane, ps);
    store<N>(state1 + base, lane, s1);
    store<N>(state2 + base, lane, s2);
    if constexpr (OPTIMIZER == ADEMAMIX) store<N>(state3 + base, lane, s3);
  }, [&](i64 i) __attribute__((always_inline)) {
    float value = to_float(p[i]), s3 = OPTIMIZER == ADEMAMIX ? state3[i] : 0.0f;
    one(to_float(g[i]), value, state1[i], state2[i], s3);
    p[i] = from_float<T>(value);
    if constexpr (OPTIMIZER == ADEMAMIX) state3[i] = s3;
  });
}

template <class T, int OPTIMIZER, int TILE_SIZE, int NUM_PER_TH, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kOptimizer32bit1State(const T* g, T* p, float* state1, const float* unorm, float max_unorm, float param_norm, float beta1,
                      float beta2, float eps, float weight_decay, i32 first, float lr, float gnorm_scale, i32 skip_zeros, i32 wide,
                      i64 n) {
  constexpr int N = NUM_PER_TH;
  const float scale = trust_ratio(unorm, max_unorm, max_unorm * param_norm + eps);
  const Step step{beta1, beta2, 0, 0, eps, weight_decay, 0, 0, first != 0, lr, scale};
  const auto one = [&](float g, float& p, float& s1) __attribute__((always_inline)) {
    float q = p, t1 = s1;
    update_1state<T, OPTIMIZER>(step, g * gnorm_scale, nullptr, q, t1);
    const bool keep = skip_zeros && g == 0;
    p = keep ? p : q, s1 = keep ? s1 : t1;
  };
  walk<TILE_SIZE, N, GROUP_SIZE, SUBG_SIZE>(n, wide, [&](i64 base) __attribute__((always_inline)) {
    const u32 lane = lane_id();
    float gs[N], ps[N], s1[N];
    load<N>(g + base, lane, gs);
    load<N>(p + base, lane, ps);
    load<N>(state1 + base, lane, s1);
#pragma unroll
    for (int j = 0; j < N; j++) one(gs[j], ps[j], s1[j]);
    store<N>(p + base, lane, ps);
    store<N>(state1 + base, lane, s1);
  }, [&](i64 i) __attribute__((always_inline)) {
    float value = to_float(p[i]);
    one(to_float(g[i]), value, state1[i]);
    p[i] = from_float<T>(value);
  });
}

// partial[sub-group] = the sum over its elements of term(i), in a fixed order.
template <int GROUP_SIZE, int SUBG_SIZE, class Term>
BNB_INLINE void partial_sums(float* partial, i64 sub_groups, i64 n, Term&& term) {
  const i64 mine = group_id() * (GROUP_SIZE / SUBG_SIZE) + sub_group_id();
  const u32 lane = lane_id();
  float sum = 0;
  i64 base = mine * SUBG_SIZE;
  const i64 stride = sub_groups * SUBG_SIZE;
#pragma unroll 4
  for (; base + SUBG_SIZE <= n; base += stride) sum += term(base);
  if (base + lane < n) sum += term(base);
  sum = sub_group_sum<SUBG_SIZE>(sum);
  if (lane == 0) partial[mine] = sum;
}

// The square of the norm of the update that is to come; of ADEMAMIX the sum of its first state, as in bitsandbytes.
template <class T, int OPTIMIZER, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kPreconditionOptimizer32bit2State(const T* g, const float* state1, const float* state2, float* partial, float beta1, float beta2,
                                  float eps, float correction1, float correction2, float gnorm_scale, i64 sub_groups, i64 n) {
  partial_sums<GROUP_SIZE, SUBG_SIZE>(partial, sub_groups, n, [&](i64 base) __attribute__((always_inline)) {
    const u32 lane = lane_id();
    if constexpr (OPTIMIZER == ADEMAMIX) return (state1 + base)[lane];
    const float x = to_float((g + base)[lane]) * gnorm_scale;
    const float s1 = (state1 + base)[lane] * beta1 + (1 - beta1) * x;
    const float s2 = (state2 + base)[lane] * beta2 + (1 - beta2) * x * x;
    const float update = s1 / correction1 / (square_root(s2) / correction2 + eps);
    return update * update;
  });
}

// The same; of LION the sum of its state after a step, as in bitsandbytes.
template <class T, int OPTIMIZER, int GROUP_SIZE, int SUBG_SIZE>
BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
kPreconditionOptimizer32bit1State(const T* g, const float* state1, float* partial, float beta1, float beta2, float eps, i32 first,
                                  float gnorm_scale, i64 sub_groups, i64 n) {
  partial_sums<GROUP_SIZE, SUBG_SIZE>(partial, sub_groups, n, [&](i64 base) __attribute__((always_inline)) {
    const u32 lane = lane_id();
    const float x = to_float((g + base)[lane]) * gnorm_scale, s1 = (state1 + base)[lane];
    if constexpr (OPTIMIZER == LION) return s1 * beta2 + (1 - beta2) * x;
    float update;
    if constexpr (OPTIMIZER == MOMENTUM)
      update = first ? x : s1 * beta1 + x;
    else if constexpr (OPTIMIZER == RMSPROP)
      update = x / (square_root(s1 * beta1 + (1 - beta1) * x * x) + eps);
    else
      update = x / (square_root(s1 + x * x) + eps);
    return update * update;
  });
}

// unorm[0] = the sum of `count` partial sums, by one sub-group.
template <int SUBG_SIZE>
BNB_KERNEL(SUBG_SIZE, SUBG_SIZE)
kSumUnorm(const float* partial, float* unorm, i64 count) {
  const u32 lane = lane_id();
  float sum = 0;
#pragma unroll 8
  for (i64 base = 0; base < count; base += SUBG_SIZE) sum += (partial + base)[lane];  // count is a multiple
  sum = sub_group_sum<SUBG_SIZE>(sum);
  if (lane == 0) unorm[0] = sum;
}

}  // namespace bnb
