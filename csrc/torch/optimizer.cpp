#include "optimizer.h"

namespace bnb {

const OptimizerKind& optimizer_kind(const char* op, const std::string& optimizer_name) {
  static constexpr OptimizerKind kinds[] = {
      {"adam", BNB_ADAM, true, 1},          {"lamb", BNB_ADAM, true, 1},      {"ademamix", BNB_ADEMAMIX, true, 2},
      {"momentum", BNB_MOMENTUM, false, 1}, {"lars", BNB_MOMENTUM, false, 1}, {"rmsprop", BNB_RMSPROP, false, 1},
      {"adagrad", BNB_ADAGRAD, false, 1},   {"lion", BNB_LION, false, 1},
  };
  for (const auto& kind : kinds)
    if (optimizer_name == kind.name) return kind;
  std::string allowed;
  for (const auto& kind : kinds) allowed += (allowed.empty() ? "" : ", ") + std::string(kind.name);
  fail(op, ": optimizer_name must be one of ", allowed, ", got '", optimizer_name, "'");
}

int64_t check_gradient(const char* op, const Tensor& g, const Tensor& p) {
  check_float(op, "g", g);
  check_dtype(op, "p", p, g.scalar_type());
  check_device(op, "p", p, g, "g");
  if (p.numel() != g.numel()) fail(op, ": p must have as many elements as g, ", g.numel(), ", got ", p.numel());
  return g.numel();
}

void check_state(const char* op, const char* argument, const Tensor& state, ScalarType dtype, int64_t numel, const Tensor& g) {
  check_dtype(op, argument, state, dtype);
  if (state.numel() != numel) fail(op, ": ", argument, " must have ", numel, " elements, got ", state.numel());
  if (numel == 0) return;
  int32_t type;
  aoti_torch_get_device_type(state.get(), &type);
  if (type == aoti_torch_device_type_cpu() && state.is_contiguous()) {
    int shared = 0;
    Call(op, g)(&Backend::is_shared, static_cast<const void*>(state.data_ptr()), &shared);
    if (shared) return;
  }
  check_device(op, argument, state, g, "g");
}

void check_step(const char* op, int64_t step) {
  if (step < 1 || step > INT32_MAX) fail(op, ": step must be from 1 to ", INT32_MAX, ", got ", step);
}

const Tensor& needed(const char* op, const char* argument, const std::optional<Tensor>& tensor, const std::string& optimizer_name) {
  if (!tensor) fail(op, ": ", argument, " must be given for ", optimizer_name, ", got None");
  return *tensor;
}

}  // namespace bnb
