// What the operators share: checks that name the argument, allocation, and the way to the kernels.
//
// This folder is the only one that sees torch, and only its stable ABI: one binary for every torch from 2.10 on.
// An operator checks its arguments, makes them contiguous, allocates, and calls a kernel library through `Backend`.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/threads.h"
#include "../xpu_ops/xpu_ops.h"

namespace bnb {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// ---- errors: "operator: argument …, expected …, got …" --------------------------------------------------------------
template <class... Parts>
[[noreturn]] __attribute__((cold, noinline)) void fail(const Parts&... parts) {
  std::ostringstream text;
  ((text << parts), ...);
  throw std::runtime_error(text.str());
}

const char* name_of(ScalarType dtype);
std::string text_of(Sizes sizes);
std::string text_of_device(const Tensor& tensor);

void check_dtype(const char* op, const char* argument, const Tensor& tensor, ScalarType expected);
// One of float16, bfloat16, float32.
void check_float(const char* op, const char* argument, ScalarType dtype);
void check_float(const char* op, const char* argument, const Tensor& tensor);
void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& A, const char* like = "A");
// At least `expected` elements.
void check_numel(const char* op, const char* argument, const Tensor& tensor, int64_t expected, const char* why);
void check_shape(const char* op, const char* argument, const Tensor& tensor, Sizes expected);
// A power of two from 32 to 4096.
void check_4bit_blocksize(const char* op, int64_t blocksize);
// BNB_NF4 or BNB_FP4.
int check_quant_type(const char* op, const std::string& quant_type);
// The number of elements of a shape; fails on a negative size or an overflow.
int64_t check_numel_of(const char* op, const char* argument, Sizes shape);
// Packed 4-bit codes, in any storage dtype, enough for n.
void check_packed(const char* op, const char* argument, const Tensor& packed, int64_t n);

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// ---- tensors ---------------------------------------------------------------------------------------------------------
BnbDtype dtype_of(ScalarType dtype);
inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }
// Uninitialised, contiguous, on A's device.
Tensor empty(Sizes sizes, ScalarType dtype, const Tensor& A);
// Uninitialised, of A's sizes; dense, and of A's strides if A is so too, like torch.empty_like.
Tensor empty_like(const Tensor& A, ScalarType dtype);
// Fills `out` by `run(contiguous tensor)`: directly if it is contiguous, else through a copy.
template <class Run>
void fill(Tensor& out, Run&& run) {
  if (out.is_contiguous()) return run(out);
  Tensor filled = empty(out.sizes(), out.scalar_type(), out);
  run(filled);
  torch::stable::copy_(out, filled);
}
// A's sizes but for the last, which becomes n.
Shape with_last(const Tensor& A, int64_t n);
// Calls an operator of aten that takes and returns what the stable ABI can carry; `args` in the order of its schema.
template <class... Args>
Tensor aten(const char* name, const char* overload, const Args&... args) {
  StableIValue stack[] = {torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// ---- kernels ---------------------------------------------------------------------------------------------------------
// The kernel library of a device type. Every function returns a status and writes a message, see xpu_ops.h.
struct Backend {
  decltype(&cdequantize_blockwise) dequantize_blockwise;
  decltype(&cquantize_blockwise) quantize_blockwise;
  decltype(&cgemv_4bit_inference) gemv_4bit_inference;
  decltype(&cgemm_4bit_inference) gemm_4bit_inference;
  decltype(&cgemm_4bit_scratch) gemm_4bit_scratch;
  decltype(&cgemm_4bit_max_rows) gemm_4bit_max_rows;
  decltype(&cgemm_4bit_panel_bytes) gemm_4bit_panel_bytes;  // null on a CPU
  decltype(&cgemm_4bit_transposed) gemm_4bit_transposed;  // null on an XPU
  decltype(&cint8_vector_quant) int8_vector_quant;
  decltype(&cint8_zero_columns) int8_zero_columns;
  decltype(&cint8_column_quant) int8_column_quant;
  decltype(&cint8_vector_dequant) int8_vector_dequant;
  decltype(&cdequant_mm_int32) dequant_mm_int32;
  decltype(&cint8_few_rows) int8_few_rows;
  decltype(&cint8_linear_matmul) int8_linear_matmul;
  decltype(&cint8_scaled_mm) int8_scaled_mm;
  decltype(&cint8_outlier_product) int8_outlier_product;  // null on a CPU
  decltype(&coptimizer32bit) optimizer32bit;
  decltype(&coptimizer_static_8bit_blockwise) optimizer_static_8bit_blockwise;
  decltype(&cis_shared) is_shared;
  decltype(&bnb_xpu_wait) wait;  // null on a CPU
};

bool is_on_cpu(const Tensor& tensor);

// The queue of a CPU device to which calls on CPU tensors go, each waited for; null in normal use (bnb_torch_sycl_on_cpu).
extern void* sycl_on_cpu;

// One call's way to the kernels: the backend of A's device, and the queue of the caller's current stream (on a CPU, the
// caller's threads).
class Call {
 public:
  Call(const char* op, const Tensor& A);
  // Whether the kernels are those of the CPU library.
  bool is_of_cpu_library() const { return !backend_.wait; }

  // backend.function(arguments but for the queue…), for what cannot fail
  template <class Function, class... Args>
  int64_t ask(Function Backend::* function, Args... args) const {
    return (backend_.*function)(args..., queue_);
  }

  // call(&Backend::function, arguments but for queue and message…)
  template <class Function, class... Args>
  void operator()(Function Backend::* function, Args... args) const {
    char message[2048] = "";
    int failed = (backend_.*function)(args..., queue_, message, sizeof message);
    if (queue_ == sycl_on_cpu && !failed) [[unlikely]]
      failed = backend_.wait(queue_, message, sizeof message);
    if (failed) fail(op_, ": ", message);
  }

 private:
  const char* op_;
  const Backend& backend_;
  void* queue_ = nullptr;
};

// ---- operators: boxed, under their name in torch.ops.bitsandbytes, or namespace::name --------------------------------
using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
struct Operator {
  Operator(const char* name, Boxed on_cpu, Boxed on_xpu);
  static std::vector<Operator>& all();
  const char* name;
  Boxed on_cpu, on_xpu;
};

// Fails in a process that was forked from one in which the kernels were at hand.
void check_process(const char* op);

// clang-format off
#define BNB_OPERATOR(name, function)                                                                             \
  static const ::bnb::Operator registered_##function(                                                            \
      name, TORCH_BOX(&function), [](StableIValue* stack, uint64_t in, uint64_t out) {                           \
        ::bnb::check_process(name);                                                                              \
        TORCH_BOX(&function)(stack, in, out);                                                                    \
      })
// clang-format on

}  // namespace bnb
