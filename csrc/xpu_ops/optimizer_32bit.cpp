// Launch of csrc/xpu_kernels/optimizer_32bit.cpp.
#include "optimizer.h"

namespace bnb {
namespace {

struct Shape {
  int tile, num_per_th, group;
};

// What measured best: on CPU devices a sub-group has a stretch of its own, on GPUs a lane takes 16 bytes of a state.
constexpr Shape shape_of(Kind kind) { return kind == Kind::cpu ? Shape{8192, 1, 64} : Shape{2048, 4, 256}; }

constexpr int kNormGroup = 128;
static_assert(BNB_UNORM_SCRATCH % 32 == 0 && BNB_UNORM_SCRATCH % (kNormGroup / 16) == 0);

template <class T, Optimizer OPTIMIZER>
std::string family(const char* suffix) {
  return std::string("optimizer_32bit/") + name_of(OPTIMIZER) + "/" + short_name<T> + suffix;
}

std::string in_source(Optimizer optimizer) { return std::string("bnb::") + name_of(optimizer); }

template <class T, Optimizer OPTIMIZER>
const Kernel& update_kernel(Kind kind) {
  static const KernelTable table([](Kind k, int) {
    const Shape s = shape_of(k);
    return KernelName{family<T, OPTIMIZER>(""),
                      instantiation(has_two_states(OPTIMIZER) ? "bnb::kOptimizer32bit2State" : "bnb::kOptimizer32bit1State",
                                    type_name<T>, in_source(OPTIMIZER), s.tile, s.num_per_th, s.group, sub_group_size(k))};
  }, "optimizer_32bit", 1);
  return table.at(kind, 0);
}

// The norm's two passes, built together and only where max_unorm is used.
enum Pass { kPartial, kSum };
template <class T, Optimizer OPTIMIZER>
const Kernel& norm_kernel(Kind kind, Pass pass) {
  static const KernelTable table([](Kind k, int p) {
    return KernelName{family<T, OPTIMIZER>("/norm"),
                      p == kSum ? instantiation("bnb::kSumUnorm", sub_group_size(k))
                                : instantiation(has_two_states(OPTIMIZER) ? "bnb::kPreconditionOptimizer32bit2State"
                                                                          : "bnb::kPreconditionOptimizer32bit1State",
                                                type_name<T>, in_source(OPTIMIZER), kNormGroup, sub_group_size(k))};
  }, "optimizer_32bit", 2);
  return table.at(kind, pass);
}

template <class T, Optimizer OPTIMIZER>
void find_norm(const T* g, const float* state1, const float* state2, float* unorm, float* scratch, const BnbOptimizerStep& s,
               const Corrections& c, int64_t n, sycl::queue* queue) {
  const Kind kind = device_of(*queue).kind;
  const int64_t sub_groups = BNB_UNORM_SCRATCH, groups = sub_groups / (kNormGroup / sub_group_size(kind));
  const Kernel& partial = norm_kernel<T, OPTIMIZER>(kind, kPartial);
  if constexpr (has_two_states(OPTIMIZER))
    partial.submit(*queue, groups, kNormGroup, g, state1, state2, scratch, s.beta1, s.beta2, s.eps, c.first, c.second,
                   s.gnorm_scale, sub_groups, n);
  else
    partial.submit(*queue, groups, kNormGroup, g, state1, scratch, s.beta1, s.beta2, s.eps, static_cast<int32_t>(s.step == 1),
                   s.gnorm_scale, sub_groups, n);
  norm_kernel<T, OPTIMIZER>(kind, kSum)
      .submit(*queue, 1, sub_group_size(kind), static_cast<const float*>(scratch), unorm, sub_groups);
}

}  // namespace

// One step, in place; asynchronous, on an in-order queue.
template <class T, Optimizer OPTIMIZER>
void optimizer32bit(const T* g, T* p, float* state1, float* state2, float* unorm, float* scratch, const BnbOptimizerStep& s,
                    int64_t n, sycl::queue* queue) {
  if (n <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const Corrections c(s);
  const bool limited = s.max_unorm > 0;
  // LION's limit is of the step before: bitsandbytes finds its norm after the update.
  if (limited && OPTIMIZER != LION) find_norm<T, OPTIMIZER>(g, state1, state2, unorm, scratch, s, c, n, queue);
  const Shape shape = shape_of(kind);
  const size_t width = shape.num_per_th;
  const bool two_rows = OPTIMIZER == ADEMAMIX;
  const int32_t wide = aligned(g, width * sizeof(T)) && aligned(p, width * sizeof(T)) && aligned(state1, width * sizeof(float)) &&
                       aligned(state2, width * sizeof(float)) && (!two_rows || n % width == 0);
  const Kernel& kernel = update_kernel<T, OPTIMIZER>(kind);
  const int64_t groups = (n + shape.tile - 1) / shape.tile;
  const float* const norm = unorm;
  if constexpr (has_two_states(OPTIMIZER))
    kernel.submit(*queue, groups, shape.group, g, p, state1, state2, norm, s.max_unorm, s.param_norm, s.beta1, s.beta2, s.beta3,
                  s.alpha, s.eps, s.weight_decay, c.first, c.second, s.lr, s.gnorm_scale, s.skip_zeros, wide, n);
  else
    kernel.submit(*queue, groups, shape.group, g, p, state1, norm, s.max_unorm, s.param_norm, s.beta1, s.beta2, s.eps,
                  s.weight_decay, static_cast<int32_t>(s.step == 1), s.lr, s.gnorm_scale, s.skip_zeros, wide, n);
  if (limited && OPTIMIZER == LION) find_norm<T, OPTIMIZER>(g, state1, state2, unorm, scratch, s, c, n, queue);
}

static const bool registered = (for_every_optimizer([]<class T, Optimizer OPTIMIZER>() {
  update_kernel<T, OPTIMIZER>(Kind::cpu);
  norm_kernel<T, OPTIMIZER>(Kind::cpu, kPartial);
}),
                                true);

}  // namespace bnb

int coptimizer32bit(int dtype, int optimizer, const void* g, void* p, float* state1, float* state2, float* unorm, float* scratch,
                    const BnbOptimizerStep* step, int64_t n, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::with_optimizer(optimizer, [&]<bnb::Optimizer OPTIMIZER>() {
        bnb::optimizer32bit<T, OPTIMIZER>(static_cast<const T*>(g), static_cast<T*>(p), state1, state2, unorm, scratch, *step, n,
                                          static_cast<sycl::queue*>(queue));
      });
    });
  });
}
