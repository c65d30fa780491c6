// The collectives of torch.distributed: on the virtual XPU they are those of the process group's CPU backend, gloo.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>

#include "fallback.h"

namespace vxpu {
namespace {

// Tensors in lists of any depth become CPU tensors over the same memory.
c10::IValue borrow(const c10::IValue& value, Aliases& aliases) {
  if (value.isTensor()) return aliases.borrow(value.toTensor());
  if (!value.isList()) return value;
  const auto list = value.toList();
  c10::impl::GenericList made(list.elementType());
  for (const c10::IValue& item : list) made.push_back(borrow(item, aliases));
  return made;
}

// Waits for the exchange itself, as the aliases do not outlive the call: a collective is complete when it returns.
void collective(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
  count_fallback(handle.schema().name().c_str());
  Aliases aliases;
  const size_t count = handle.schema().arguments().size();
  const size_t first = stack->size() - count;
  const torch::jit::Stack originals(stack->begin() + first, stack->end());
  for (size_t i = first; i < first + count; ++i) (*stack)[i] = borrow((*stack)[i], aliases);
  drain_current_stream();
  handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  stack->back().toCustomClass<c10d::Work>()->wait();
  // Those that return tensors return their first argument.
  if (handle.schema().returns().size() == 2) (*stack)[first] = originals[0];
}

}  // namespace

void register_collectives() {
  static auto* library = new torch::Library(torch::Library::IMPL, "c10d", c10::DispatchKey::XPU, __FILE__, __LINE__);
  // Not send and recv_: two processes that send to each other would wait for one another.
  for (const char* name : {"allreduce_", "allreduce_coalesced_", "broadcast_", "reduce_", "allgather_", "_allgather_base_",
                           "allgather_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_", "_reduce_scatter_base_",
                           "reduce_scatter_tensor_coalesced_", "gather_", "scatter_", "alltoall_", "alltoall_base_", "barrier"}) {
    library->impl(name, torch::CppFunction::makeFromBoxedFunction<&collective>());
  }
}

}  // namespace vxpu
