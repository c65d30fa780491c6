#include "fallback.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "device.h"

namespace vxpu {
namespace {

// What the fallback has to know of an operator, worked out at its first call.
struct Operator {
  std::string name;  // "aten::add.out"
  bool borrowable = false;  // of the namespace aten: whoever else has no XPU kernel must fail, as on a GPU
  bool has_cpu_kernel = false;
  bool mixes_devices = false;
  c10::SmallVector<size_t, 1> generators;  // positions of Generator arguments
  std::atomic<uint64_t> calls{0};
};

std::mutex g_mutex;

std::unordered_map<const void*, std::unique_ptr<Operator>>& operators() {
  static auto* map = new std::unordered_map<const void*, std::unique_ptr<Operator>>();
  return *map;
}

std::map<std::string, uint64_t>& named_calls() {
  static auto* map = new std::map<std::string, uint64_t>();
  return *map;
}

bool mixes_devices(const std::string& name) {
  // As on a GPU: indices may live on the CPU, and copies are there to cross devices.
  for (const char* base : {"aten::copy_", "aten::_copy_from", "aten::_foreach_copy_", "aten::index_put_", "aten::index_put",
                           "aten::_index_put_impl_", "aten::index", "aten::set_"}) {
    const std::string_view view(base);
    if (name.compare(0, view.size(), view) == 0 && (name.size() == view.size() || name[view.size()] == '.')) return true;
  }
  return false;
}

std::unique_ptr<Operator> examine(const c10::OperatorHandle& handle) {
  auto made = std::make_unique<Operator>();
  made->name = c10::toString(handle.operator_name());
  made->borrowable = made->name.compare(0, 6, "aten::") == 0;
  made->has_cpu_kernel = handle.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU);
  made->mixes_devices = mixes_devices(made->name);
  const auto& arguments = handle.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    c10::TypePtr type = arguments[i].type();
    if (auto optional = type->cast<c10::OptionalType>()) type = optional->getElementType();
    if (type->kind() == c10::TypeKind::GeneratorType) made->generators.push_back(i);
  }
  return made;
}

[[noreturn]] void refuse(const Operator& op) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "Could not run '", op.name,
                              "' with arguments from the 'XPU' backend. No XPU kernel is registered for it",
                              op.borrowable ? ", and it has no CPU kernel that the virtual XPU could borrow." : ".");
  std::abort();  // never reached: the check throws
}

// The operator of a call; throws for those that may not borrow, which are not kept, as they may be unregistered.
Operator& describe(const c10::OperatorHandle& handle) {
  thread_local std::unordered_map<const void*, Operator*> seen;
  const void* key = &handle.operator_name();
  if (const auto found = seen.find(key); found != seen.end()) return *found->second;
  std::lock_guard<std::mutex> lock(g_mutex);
  auto& map = operators();
  auto shared = map.find(key);
  if (shared == map.end()) {
    auto made = examine(handle);
    if (!made->borrowable || !made->has_cpu_kernel) refuse(*made);
    shared = map.emplace(key, std::move(made)).first;
  }
  return *(seen[key] = shared->second.get());
}

// Turns the arguments of a call to CPU ones, and notes which devices it met.
class Arguments {
 public:
  explicit Arguments(Aliases& aliases) : aliases_(aliases) {}

  void borrow(c10::IValue& value) {
    if (value.isTensor()) {
      value = tensor(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& item : value.toTensorVector()) list.push_back(tensor(item));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& item : value.toOptionalTensorVector()) {
        list.push_back(item.has_value() ? std::optional<at::Tensor>(tensor(*item)) : std::nullopt);
      }
      value = std::move(list);
    } else if (value.isDevice()) {
      if (value.toDevice().is_xpu()) {
        check_index(value.toDevice().index());
        met_xpu = true;
        value = c10::Device(c10::DeviceType::CPU);
      }
    } else if (value.isStorage()) {
      value = aliases_.borrow(value.toStorage());
    }
  }

  bool met_xpu = false, met_cpu = false;

 private:
  at::Tensor tensor(const at::Tensor& from) {
    if (!from.defined()) return from;
    if (from.device().is_xpu()) {
      met_xpu = true;
      return aliases_.borrow(from);
    }
    // A CPU scalar goes with every device.
    if (from.device().is_cpu() && from.dim() != 0) met_cpu = true;
    return from;
  }

  Aliases& aliases_;
};

void borrow_generators(const Operator& op, c10::IValue* arguments) {
  for (size_t at : op.generators) {
    c10::IValue& value = arguments[at];
    if (value.isNone()) {
      value = borrowed_generator(default_generator());
      continue;
    }
    const at::Generator generator = value.toGenerator();
    TORCH_CHECK(generator.device().is_xpu(), "Expected a 'xpu' device type for generator but found '", generator.device().type(),
                "'");
    value = borrowed_generator(generator);
  }
}

void restore(c10::IValue& value, Aliases& aliases) {
  if (value.isTensor()) {
    value = aliases.restore(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& item : value.toTensorVector()) list.push_back(aliases.restore(item));
    value = std::move(list);
  }
}

void fallback(const c10::OperatorHandle& handle, c10::DispatchKeySet, torch::jit::Stack* stack) {
  Operator& op = describe(handle);
  op.calls.fetch_add(1, std::memory_order_relaxed);

  Aliases aliases;
  Arguments arguments(aliases);
  const size_t count = handle.schema().arguments().size();
  c10::IValue* first = stack->data() + (stack->size() - count);
  for (size_t i = 0; i < count; ++i) arguments.borrow(first[i]);
  TORCH_CHECK(!(arguments.met_xpu && arguments.met_cpu) || op.mixes_devices,
              "Expected all tensors to be on the same device, but found at least two devices, xpu:0 and cpu! (in ", op.name, ")");
  borrow_generators(op, first);
  {
    BorrowScope scope;
    handle.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  aliases.carry_back();
  const size_t results = handle.schema().returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) restore((*stack)[i], aliases);
}

const c10::DispatchKeySet kDone = c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;

}  // namespace

void register_fallback() {
  static auto* library = new torch::Library(torch::Library::IMPL, "_", c10::DispatchKey::XPU, __FILE__, __LINE__);
  library->fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
  // These have a composite kernel, which ranks above a fallback, and a CPU kernel, which is faster and rounds less.
  static auto* aten = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::XPU, __FILE__, __LINE__);
  for (const char* name :
       {"_stack", "_stack.out", "addr", "addr.out", "all.dims", "all.dims_out", "any.dims", "any.dims_out", "linalg__powsum",
        "mish_backward", "native_channel_shuffle", "native_group_norm", "native_layer_norm", "silu_backward"}) {
    aten->impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

BorrowScope::BorrowScope() : exclude_(kDone) { drain_current_stream(); }

c10::Storage Aliases::borrow(const c10::Storage& storage) {
  if (!storage || !storage.device().is_xpu()) return storage;
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  for (const StoragePair& pair : storages_) {
    if (pair.original.unsafeGetStorageImpl() == impl) return pair.alias;
  }
  void* data = impl->mutable_data_ptr().get();
  c10::Storage alias(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), impl->nbytes(),
                                                           c10::DataPtr(data, c10::Device(c10::DeviceType::CPU)),
                                                           c10::GetAllocator(c10::DeviceType::CPU), impl->resizable()));
  storages_.push_back({storage, alias, data});
  return alias;
}

at::Tensor Aliases::borrow(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_xpu()) return tensor;
  c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  for (const TensorPair& pair : tensors_) {
    if (pair.original.unsafeGetTensorImpl() == impl) return pair.alias;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(impl->has_storage() && tensor.layout() == at::kStrided,
                              "the virtual XPU knows dense tensors only, not ", tensor.layout(), " ones");
  c10::Storage storage = borrow(impl->unsafe_storage());
  const auto* storage_impl = storage.unsafeGetStorageImpl();
  at::Tensor alias =
      at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  c10::TensorImpl* out = alias.unsafeGetTensorImpl();
  out->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) out->set_wrapped_number(true);
  if (tensor.is_conj()) out->_set_conj(true);
  if (tensor.is_neg()) out->_set_neg(true);
  tensors_.push_back({tensor, alias, storage_impl});
  return alias;
}

c10::Storage Aliases::restore(const c10::Storage& storage) {
  for (const StoragePair& pair : storages_) {
    if (pair.alias.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) return pair.original;
  }
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  const size_t bytes = impl->nbytes();
  // Memory that somebody else holds too must not be taken away from them: then it is copied.
  const bool alone = storage.use_count() == 1;
  c10::DataPtr pointer;
  if (alone) {
    pointer = claim(impl->set_data_ptr(c10::DataPtr()), bytes, /*may_move=*/true);
  } else {
    pointer = claim(c10::DataPtr(impl->mutable_data_ptr().get(), c10::Device(c10::DeviceType::CPU)), bytes, false);
  }
  c10::Storage made(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), bytes, std::move(pointer),
                                                          allocator(), /*resizable=*/true));
  storages_.push_back({made, storage, nullptr});
  return made;
}

void Aliases::carry_back() {
  for (StoragePair& pair : storages_) {
    c10::StorageImpl* original = pair.original.unsafeGetStorageImpl();
    c10::StorageImpl* alias = pair.alias.unsafeGetStorageImpl();
    const void* now = alias->data();
    if (now != pair.data) {
      const size_t bytes = alias->nbytes();
      original->set_data_ptr_noswap(claim(alias->set_data_ptr(c10::DataPtr()), bytes, /*may_move=*/true));
      original->set_nbytes(bytes);
    } else if (alias->nbytes() != original->nbytes()) {
      original->set_nbytes(alias->nbytes());
    }
  }
  const size_t count = tensors_.size();
  for (size_t i = 0; i < count; ++i) {
    TensorPair& pair = tensors_[i];
    c10::TensorImpl* original = pair.original.unsafeGetTensorImpl();
    const c10::TensorImpl* alias = pair.alias.unsafeGetTensorImpl();
    if (alias->unsafe_storage().unsafeGetStorageImpl() != pair.storage) {
      original->set_storage_keep_dtype(restore(alias->unsafe_storage()));
    }
    if (original->sizes() != alias->sizes() || original->strides() != alias->strides() ||
        original->storage_offset() != alias->storage_offset()) {
      original->set_sizes_and_strides(alias->sizes(), alias->strides(), alias->storage_offset());
    }
    if (pair.original.is_conj() != pair.alias.is_conj()) original->_set_conj(pair.alias.is_conj());
    if (pair.original.is_neg() != pair.alias.is_neg()) original->_set_neg(pair.alias.is_neg());
  }
}

at::Tensor Aliases::restore(const at::Tensor& result) {
  if (!result.defined() || !result.device().is_cpu()) return result;
  const c10::TensorImpl* impl = result.unsafeGetTensorImpl();
  for (const TensorPair& pair : tensors_) {
    if (pair.alias.unsafeGetTensorImpl() == impl) return pair.original;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(impl->has_storage() && result.layout() == at::kStrided,
                              "the virtual XPU knows dense tensors only, not ", result.layout(), " ones");
  at::Tensor made = at::detail::make_tensor<c10::TensorImpl>(restore(impl->unsafe_storage()),
                                                             c10::DispatchKeySet(c10::DispatchKey::XPU), result.dtype());
  c10::TensorImpl* out = made.unsafeGetTensorImpl();
  out->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
  if (impl->is_wrapped_number()) out->set_wrapped_number(true);
  if (result.is_conj()) out->_set_conj(true);
  if (result.is_neg()) out->_set_neg(true);
  return made;
}

void count_fallback(const char* name) {
  std::lock_guard<std::mutex> lock(g_mutex);
  ++named_calls()[name];
}

std::string fallback_counts() {
  std::lock_guard<std::mutex> lock(g_mutex);
  std::map<std::string, uint64_t> counts = named_calls();
  for (const auto& [key, op] : operators()) {
    if (const uint64_t calls = op->calls.load()) counts[op->name] += calls;
  }
  std::string text;
  for (const auto& [name, calls] : counts) text += name + "\t" + std::to_string(calls) + "\n";
  return text;
}

void reset_fallback_counts() {
  std::lock_guard<std::mutex> lock(g_mutex);
  named_calls().clear();
  for (auto& [key, op] : operators()) op->calls = 0;
}

}  // namespace vxpu
