// optimizer_update_8bit_blockwise.
#include "optimizer.h"

namespace bnb {
namespace {

void check_map(const char* op, const char* argument, const Tensor& map, const Tensor& g) {
  check_dtype(op, argument, map, ScalarType::Float);
  check_device(op, argument, map, g, "g");
  check_numel(op, argument, map, 256, "one for each value of a byte");
}

void check_absmax(const char* op, const char* argument, const Tensor& absmax, int64_t rows, int64_t blocks, const Tensor& g) {
  check_dtype(op, argument, absmax, ScalarType::Float);
  check_device(op, argument, absmax, g, "g");
  if (absmax.numel() != rows * blocks)
    fail(op, ": ", argument, " must have ", rows * blocks, " elements (", rows > 1 ? "two" : "one", " for each block of ",
         kOptimizerBlock, "), got ", absmax.numel());
}

void optimizer_update_8bit_blockwise(std::string optimizer_name, Tensor g, Tensor p, Tensor state1, std::optional<Tensor> state2,
                                     double beta1, double beta2, double beta3, double alpha, double eps, int64_t step, double lr,
                                     Tensor qmap1, std::optional<Tensor> qmap2, Tensor absmax1, std::optional<Tensor> absmax2,
                                     double weight_decay, double gnorm_scale, bool skip_zeros) {
  constexpr const char* op = "optimizer_update_8bit_blockwise";
  const OptimizerKind& kind = optimizer_kind(op, optimizer_name);
  const int64_t n = check_gradient(op, g, p), blocks = ceil_div(n, kOptimizerBlock);
  check_step(op, step);
  check_state(op, "state1", state1, ScalarType::Byte, kind.rows * n, g);
  check_map(op, "qmap1", qmap1, g);
  check_absmax(op, "absmax1", absmax1, kind.rows, blocks, g);
  if (kind.two_states) {
    check_state(op, "state2", needed(op, "state2", state2, optimizer_name), ScalarType::Byte, n, g);
    check_map(op, "qmap2", needed(op, "qmap2", qmap2, optimizer_name), g);
    check_absmax(op, "absmax2", needed(op, "absmax2", absmax2, optimizer_name), 1, blocks, g);
  }
  if (n == 0) return;
  const Tensor gradient = dense(g), map1 = dense(qmap1);
  InPlace parameter(p), first(state1), first_absmax(absmax1);
  std::optional<InPlace> second, second_absmax;
  std::optional<Tensor> map2;
  if (kind.two_states) {
    second.emplace(*state2);
    second_absmax.emplace(*absmax2);
    map2 = dense(*qmap2);
  }
  const auto f = [](double x) { return static_cast<float>(x); };
  const BnbOptimizerStep settings{
      f(beta1),  f(beta2), f(beta3), f(alpha), f(eps), f(weight_decay), f(lr), f(gnorm_scale), 0, 0, static_cast<int32_t>(step),
      skip_zeros};
  Call(op, g)(&Backend::optimizer_static_8bit_blockwise, dtype_of(g.scalar_type()), kind.kernel, parameter.data<void>(),
              static_cast<const void*>(gradient.data_ptr()), first.data<uint8_t>(), second ? second->data<uint8_t>() : nullptr,
              static_cast<const float*>(map1.data_ptr()), map2 ? static_cast<const float*>(map2->data_ptr()) : nullptr,
              first_absmax.data<float>(), second_absmax ? second_absmax->data<float>() : nullptr, &settings, n);
  parameter.write_back();
  first.write_back();
  first_absmax.write_back();
  if (second) second->write_back();
  if (second_absmax) second_absmax->write_back();
}

BNB_OPERATOR("optimizer_update_8bit_blockwise", optimizer_update_8bit_blockwise);

}  // namespace
}  // namespace bnb
