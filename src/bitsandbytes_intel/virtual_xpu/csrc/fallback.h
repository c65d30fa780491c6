// Running a CPU kernel on the memory of XPU tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/SmallVector.h>

#include <string>

#include "allocator.h"

namespace vxpu {

// The CPU aliases of the XPU tensors of one call: made before it, and mapped back after it.
class Aliases {
 public:
  // A CPU tensor over the same memory. Anything but an XPU tensor comes back as it is.
  at::Tensor borrow(const at::Tensor& tensor);
  c10::Storage borrow(const c10::Storage& storage);
  // Carries what the kernel changed (sizes, strides, storage, conjugate bit) to the originals.
  void carry_back();
  // The XPU tensor that stands for a CPU result; call it after carry_back().
  at::Tensor restore(const at::Tensor& result);

 private:
  struct TensorPair {
    at::Tensor original, alias;
    const c10::StorageImpl* storage;  // the alias's when it was made
  };
  struct StoragePair {
    c10::Storage original, alias;
    const void* data;
  };
  c10::Storage restore(const c10::Storage& storage);

  c10::SmallVector<TensorPair, 4> tensors_;
  c10::SmallVector<StoragePair, 4> storages_;
};

// What a borrowed kernel runs under: no autograd and no autocast (both are done), results in device memory, and the
// current stream drained.
class BorrowScope {
 public:
  BorrowScope();

 private:
  c10::impl::ExcludeDispatchKeyGuard exclude_;
  LoanScope loan_;
};

// Makes the fallback torch's answer for every operator that has no XPU kernel. Throws where torch refuses.
void register_fallback();
// Registers the operators that the fallback cannot serve (aten.cpp).
void register_aten();
// Registers the collectives of torch.distributed (collectives.cpp).
void register_collectives();

// Counts one call of `name` ("aten::mm") that went to a CPU kernel.
void count_fallback(const char* name);
// One line "name<TAB>calls" for each operator that was called.
std::string fallback_counts();
void reset_fallback_counts();

}  // namespace vxpu
