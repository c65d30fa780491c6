// Launch of csrc/xpu_kernels/optimizer_8bit_blockwise.cpp.
#include "optimizer.h"

namespace bnb {
namespace {

constexpr int64_t kBlock = 256;

struct Shape {
  int tile, num_per_th, group;
};

// What measured best. A work-group's tile is as large as to make nothing of filling its tables.
constexpr Shape shape_of(Kind kind, size_t element_size) {
  if (kind == Kind::cpu) return {16384, 1, 16};
  return {16384, element_size == 2 ? 8 : 4, 256};
}

template <class T, Optimizer OPTIMIZER>
const Kernel& kernel(Kind kind) {
  static const KernelTable table([](Kind k, int) {
    const Shape s = shape_of(k, sizeof(T));
    return KernelName{
        std::string("optimizer_8bit_blockwise/") + name_of(OPTIMIZER) + "/" + short_name<T>,
        instantiation(
            has_two_states(OPTIMIZER) ? "bnb::kOptimizerStatic8bit2StateBlockwise" : "bnb::kOptimizerStatic8bit1StateBlockwise",
            type_name<T>, std::string("bnb::") + name_of(OPTIMIZER), s.tile, s.num_per_th, s.group, sub_group_size(k))};
  }, "optimizer_8bit_blockwise", 1);
  return table.at(kind, 0);
}

}  // namespace

// One step, in place; asynchronous.
template <class T, Optimizer OPTIMIZER>
void optimizerStatic8bitBlockwise(T* p, const T* g, uint8_t* state1, uint8_t* state2, const float* quantiles1,
                                  const float* quantiles2, float* absmax1, float* absmax2, const BnbOptimizerStep& s, int64_t n,
                                  sycl::queue* queue) {
  if (n <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const Shape shape = shape_of(kind, sizeof(T));
  const size_t width = shape.num_per_th;
  const bool two_rows = OPTIMIZER == ADEMAMIX;
  const int32_t wide = aligned(g, width * sizeof(T)) && aligned(p, width * sizeof(T)) && aligned(state1, width) &&
                       aligned(state2, width) && (!two_rows || n % width == 0);
  const int64_t groups = (n + shape.tile - 1) / shape.tile;
  if constexpr (has_two_states(OPTIMIZER)) {
    const Corrections c(s);
    float* const absmax3 = two_rows ? absmax1 + (n + kBlock - 1) / kBlock : nullptr;
    kernel<T, OPTIMIZER>(kind).submit(*queue, groups, shape.group, p, g, state1, state2, quantiles1, quantiles2, absmax1, absmax2,
                                      absmax3, s.beta1, s.beta2, s.beta3, s.alpha, s.eps, s.weight_decay, c.first, c.second, s.lr,
                                      s.gnorm_scale, s.skip_zeros, wide, n);
  } else {
    kernel<T, OPTIMIZER>(kind).submit(*queue, groups, shape.group, p, g, state1, quantiles1, absmax1, s.beta1, s.beta2, s.eps,
                                      s.weight_decay, static_cast<int32_t>(s.step == 1), s.lr, s.gnorm_scale, s.skip_zeros, wide,
                                      n);
  }
}

static const bool registered = (for_every_optimizer([]<class T, Optimizer OPTIMIZER>() { kernel<T, OPTIMIZER>(Kind::cpu); }), true);

}  // namespace bnb

int coptimizer_static_8bit_blockwise(int dtype, int optimizer, void* p, const void* g, uint8_t* state1, uint8_t* state2,
                                     const float* quantiles1, const float* quantiles2, float* absmax1, float* absmax2,
                                     const BnbOptimizerStep* step, int64_t n, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::with_optimizer(optimizer, [&]<bnb::Optimizer OPTIMIZER>() {
        bnb::optimizerStatic8bitBlockwise<T, OPTIMIZER>(static_cast<T*>(p), static_cast<const T*>(g), state1, state2, quantiles1,
                                                        quantiles2, absmax1, absmax2, *step, n, static_cast<sycl::queue*>(queue));
      });
    });
  });
}
