// The operators that the fallback cannot serve, or not fast enough.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/copy.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/native_group_norm_backward.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <cstring>
#include <limits>

#include "allocator.h"
#include "device.h"
#include "fallback.h"

namespace vxpu {
namespace {

using at::IntArrayRef;
using at::Tensor;

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::XPU);
constexpr size_t kSmallCopy = 256 << 10;  // beyond it torch's copy, on several threads, wins over memcpy

// What every factory is asked for and has to refuse.
void check_options(std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pin) {
  if (device.has_value()) check_index(device->index());
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  TORCH_CHECK_NOT_IMPLEMENTED(at::layout_or_default(layout) == at::kStrided, "the virtual XPU knows dense tensors only");
}

// With deterministic algorithms torch fills fresh memory with NaN, which shows who reads it.
Tensor fill_if_asked(Tensor fresh) {
  if (C10_UNLIKELY(at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory())) {
    at::native::fill_empty_deterministic_(fresh);
  }
  return fresh;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
             std::optional<at::Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  check_options(layout, device, pin);
  return fill_if_asked(at::detail::empty_generic(size, allocator(), kKeys, at::dtype_or_default(dtype), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                     std::optional<at::Device> device, std::optional<bool> pin) {
  check_options(layout, device, pin);
  return fill_if_asked(at::detail::empty_strided_generic(size, stride, allocator(), kKeys, at::dtype_or_default(dtype)));
}

// A tensor of zeros without memory; autograd makes these.
Tensor zero_tensor(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                   std::optional<at::Device> device, std::optional<bool> pin) {
  check_options(layout, device, pin);
  static auto* no_memory = new at::native::ZeroTensorAllocator(kDevice);
  return at::detail::empty_generic(size, no_memory, kKeys | c10::DispatchKeySet(c10::DispatchKey::ZeroTensor),
                                   at::dtype_or_default(dtype), std::nullopt);
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<at::MemoryFormat> format) {
  drain_current_stream();  // the old contents are copied by the host
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);
  if (format.has_value()) {
    TORCH_CHECK(*format != at::MemoryFormat::Preserve, "Unsupported memory format", *format);
    self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  }
  return self;
}

Tensor& set_storage_(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  at::native::checkSetStorage(self, std::move(source), offset, size, stride);
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  const auto strides = stride.data() ? at::OptionalIntArrayRef(stride) : std::nullopt;
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, strides, /*resize_storage=*/true);
  return self;
}

Tensor& set_nothing_(Tensor& self) {
  at::Storage storage(at::Storage::use_byte_size_t(), 0, allocator(), /*resizable=*/true);
  return set_storage_(self, std::move(storage), 0, {0}, {});
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
  TORCH_CHECK(self.defined() && source.defined(), "copy_ got an undefined tensor");
  if (self.is_same(source)) return self;
  const size_t bytes = self.nbytes();
  if (bytes <= kSmallCopy && self.scalar_type() == source.scalar_type() && self.sizes() == source.sizes() && self.is_contiguous() &&
      source.is_contiguous() && self.is_conj() == source.is_conj() && self.is_neg() == source.is_neg() &&
      source.layout() == at::kStrided && !source.is_meta()) {
    if (bytes == 0) return self;
    drain_current_stream();
    std::memmove(self.mutable_data_ptr(), source.const_data_ptr(), bytes);
    return self;
  }
  Aliases aliases;
  Tensor to = aliases.borrow(self);
  const Tensor from = aliases.borrow(source);
  BorrowScope scope;
  to.copy_(from);
  return self;
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask, double dropout,
                 bool causal, std::optional<double> scale, bool gqa) {
  std::optional<Tensor> bias = mask;
  if (mask.has_value() && mask->defined() && mask->scalar_type() == at::kBool) {
    // What torch does before it picks a kernel: a mask of truth values becomes one of zeros and minus infinities.
    bias = at::empty(mask->sizes(), mask->options().dtype(query.scalar_type()));
    bias->zero_();
    bias->masked_fill_(mask->logical_not(), -std::numeric_limits<double>::infinity());
  }
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, causal, std::nullopt, scale, gqa));
}

std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  // The CPU kernel draws from the CPU's generator; this one draws from ours.
  if (input.numel() == 0 || !train.value_or(true)) {
    return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  }
  Tensor mask = at::empty(input.sizes(), input.options().dtype(at::kBool));
  mask.bernoulli_(1 - p);
  const double scale = p == 1 ? 0 : 1 / (1 - p);
  return {input.mul(mask).mul_(scale), mask};
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  count_fallback("aten::convolution_overrideable");
  Aliases aliases;
  const Tensor x = aliases.borrow(input), w = aliases.borrow(weight);
  const Tensor b = bias.has_value() ? aliases.borrow(*bias) : Tensor();
  BorrowScope scope;
  return aliases.restore(at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                        bool transposed, IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> mask) {
  count_fallback("aten::convolution_backward_overrideable");
  Aliases aliases;
  const Tensor g = aliases.borrow(grad), x = aliases.borrow(input), w = aliases.borrow(weight);
  const int64_t outputs = transposed ? weight.size(1) * groups : weight.size(0);
  BorrowScope scope;
  auto [dx, dw, db] = at::convolution_backward(g, x, w, at::OptionalIntArrayRef({outputs}), stride, padding, dilation, transposed,
                                               output_padding, groups, mask);
  return {aliases.restore(dx), aliases.restore(dw), aliases.restore(db)};
}

// Autograd hands an XPU the gradient as it is, and the CPU kernel wants it contiguous.
std::tuple<Tensor, Tensor, Tensor> group_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& mean,
                                                       const Tensor& rstd, const std::optional<Tensor>& weight, int64_t n,
                                                       int64_t c, int64_t hxw, int64_t group, std::array<bool, 3> mask) {
  count_fallback("aten::native_group_norm_backward");
  const auto format = input.suggest_memory_format();
  Aliases aliases;
  const Tensor g = aliases.borrow(grad.contiguous(format)), x = aliases.borrow(input.contiguous(format));
  const Tensor m = aliases.borrow(mean.contiguous()), r = aliases.borrow(rstd.contiguous());
  const Tensor w = weight.has_value() && weight->defined() ? aliases.borrow(weight->contiguous()) : Tensor();
  BorrowScope scope;
  auto [dx, dw, db] = at::native_group_norm_backward(g, x, m, r, w, n, c, hxw, group, mask);
  return {aliases.restore(dx), aliases.restore(dw), aliases.restore(db)};
}

void record_stream(Tensor& self, at::Stream stream) { allocator()->recordStream(self.storage().data_ptr(), stream); }

}  // namespace

void register_aten() {
  static auto* library = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::XPU, __FILE__, __LINE__);
  torch::Library& m = *library;
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_efficientzerotensor", TORCH_FN(zero_tensor));
  m.impl("native_group_norm_backward", TORCH_FN(group_norm_backward));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage", TORCH_FN(at::native::set_));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage_));
  m.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  m.impl("set_", TORCH_FN(set_nothing_));
  m.impl("copy_", TORCH_FN(copy_));
  // Views: torch's own code, which asks for no device.
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("scaled_dot_product_attention", TORCH_FN(attention));
  m.impl("native_dropout", TORCH_FN(native_dropout));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));

  static auto* autograd = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradXPU, __FILE__, __LINE__);
  autograd->impl("scaled_dot_product_attention", TORCH_FN(attention));
}

}  // namespace vxpu
