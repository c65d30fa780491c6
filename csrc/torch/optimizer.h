// What the two optimizer operators share: names, checks, tensors that are changed in place.
#pragma once
#include "common.h"

namespace bnb {

constexpr int64_t kOptimizerBlock = 256;

struct OptimizerKind {
  const char* name;
  BnbOptimizer kernel;
  bool two_states;
  int64_t rows;  // of state1
};

// Fails on a name that bitsandbytes does not know.
const OptimizerKind& optimizer_kind(const char* op, const std::string& optimizer_name);

// g and p: of one dtype, device and number of elements, which is returned.
int64_t check_gradient(const char* op, const Tensor& g, const Tensor& p);
// A state: dtype, number of elements; on g's device, or paged: memory that the device shares with the host.
void check_state(const char* op, const char* argument, const Tensor& state, ScalarType dtype, int64_t numel, const Tensor& g);
void check_step(const char* op, int64_t step);
// Fails unless `tensor` is given.
const Tensor& needed(const char* op, const char* argument, const std::optional<Tensor>& tensor, const std::string& optimizer_name);

// The elements of a tensor in order, to be changed: its own memory, or a copy that write_back brings home.
class InPlace {
 public:
  explicit InPlace(const Tensor& tensor) : tensor_(tensor), dense_(dense(tensor)), copied_(!tensor.is_contiguous()) {}
  template <class T>
  T* data() const {
    return static_cast<T*>(dense_.data_ptr());
  }
  void write_back() {
    if (copied_) torch::stable::copy_(tensor_, dense_);
  }

 private:
  Tensor tensor_, dense_;
  bool copied_;
};

}  // namespace bnb
