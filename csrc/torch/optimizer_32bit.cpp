// optimizer_update_32bit.
#include "optimizer.h"

namespace bnb {
namespace {

void optimizer_update_32bit(std::string optimizer_name, Tensor g, Tensor p, Tensor state1, std::optional<Tensor> state2,
                            std::optional<Tensor> unorm_vec, double max_unorm, double param_norm, double beta1, double beta2,
                            double beta3, double alpha, double eps, double weight_decay, int64_t step, double lr,
                            double gnorm_scale, bool skip_zeros) {
  constexpr const char* op = "optimizer_update_32bit";
  const OptimizerKind& kind = optimizer_kind(op, optimizer_name);
  const int64_t n = check_gradient(op, g, p);
  check_step(op, step);
  check_state(op, "state1", state1, ScalarType::Float, kind.rows * n, g);
  if (kind.two_states) check_state(op, "state2", needed(op, "state2", state2, optimizer_name), ScalarType::Float, n, g);
  if (max_unorm > 0) {
    if (!unorm_vec) fail(op, ": unorm_vec must be given with max_unorm, got None");
    check_dtype(op, "unorm_vec", *unorm_vec, ScalarType::Float);
    check_device(op, "unorm_vec", *unorm_vec, g, "g");
    check_numel(op, "unorm_vec", *unorm_vec, 1, "the norm of the update");
  }
  if (n == 0) {  // an update of no element has the norm 0
    if (max_unorm > 0) torch::stable::zero_(*unorm_vec);
    return;
  }
  const Tensor gradient = dense(g);
  InPlace parameter(p), first(state1);
  std::optional<InPlace> second, norm;
  if (kind.two_states) second.emplace(*state2);
  std::optional<Tensor> scratch;
  if (max_unorm > 0) {
    norm.emplace(*unorm_vec);
    scratch = empty(Shape{BNB_UNORM_SCRATCH}, ScalarType::Float, g);
  }
  const auto f = [](double x) { return static_cast<float>(x); };
  // clang-format off
  const BnbOptimizerStep settings{f(beta1),        f(beta2),       f(beta3),      f(alpha),      f(eps),
                                  f(weight_decay), f(lr),          f(gnorm_scale), f(max_unorm), f(param_norm),
                                  static_cast<int32_t>(step), skip_zeros};
  // clang-format on
  Call(op, g)(&Backend::optimizer32bit, dtype_of(g.scalar_type()), kind.kernel, static_cast<const void*>(gradient.data_ptr()),
              parameter.data<void>(), first.data<float>(), second ? second->data<float>() : nullptr,
              norm ? norm->data<float>() : nullptr, scratch ? static_cast<float*>(scratch->data_ptr()) : nullptr, &settings, n);
  parameter.write_back();
  first.write_back();
  if (second) second->write_back();
  if (norm) norm->write_back();
}

BNB_OPERATOR("optimizer_update_32bit", optimizer_update_32bit);

}  // namespace
}  // namespace bnb
