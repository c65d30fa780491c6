#include "common.h"
#include "memory.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>

namespace bnb {

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Bool: return "bool";
    default: return "a dtype of another kind";
  }
}

std::string text_of(Sizes sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); i++) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

std::string text_of_device(const Tensor& tensor) {
  int32_t type;
  aoti_torch_get_device_type(tensor.get(), &type);
  const char* name = type == aoti_torch_device_type_cpu()    ? "cpu"
                     : type == aoti_torch_device_type_xpu()  ? "xpu"
                     : type == aoti_torch_device_type_cuda() ? "cuda"
                     : type == aoti_torch_device_type_meta() ? "meta"
                                                             : "another device";
  return type == aoti_torch_device_type_cpu() ? name : std::string(name) + ":" + std::to_string(tensor.get_device_index());
}

// Undefined is what torch makes of None where a schema wants a tensor.
static void check_given(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.defined()) fail(op, ": ", argument, " must be a tensor, got None");
}

void check_dtype(const char* op, const char* argument, const Tensor& tensor, ScalarType expected) {
  check_given(op, argument, tensor);
  if (tensor.scalar_type() != expected)
    fail(op, ": ", argument, " must be ", name_of(expected), ", got ", name_of(tensor.scalar_type()));
}

void check_float(const char* op, const char* argument, ScalarType dtype) {
  if (dtype != ScalarType::Half && dtype != ScalarType::BFloat16 && dtype != ScalarType::Float)
    fail(op, ": ", argument, " must be float16, bfloat16 or float32, got ", name_of(dtype));
}

void check_float(const char* op, const char* argument, const Tensor& tensor) {
  check_given(op, argument, tensor);
  check_float(op, argument, tensor.scalar_type());
}

void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& A, const char* like) {
  check_given(op, argument, tensor);
  int32_t type, wanted;
  aoti_torch_get_device_type(tensor.get(), &type);
  aoti_torch_get_device_type(A.get(), &wanted);
  if (type != wanted || tensor.get_device_index() != A.get_device_index())
    fail(op, ": ", argument, " must be on ", text_of_device(A), " like ", like, ", got ", text_of_device(tensor));
}

void check_numel(const char* op, const char* argument, const Tensor& tensor, int64_t expected, const char* why) {
  if (tensor.numel() < expected)
    fail(op, ": ", argument, " must have at least ", expected, " elements (", why, "), got ", tensor.numel());
}

void check_shape(const char* op, const char* argument, const Tensor& tensor, Sizes expected) {
  if (tensor.sizes() != expected)
    fail(op, ": ", argument, " must be of shape ", text_of(expected), ", got ", text_of(tensor.sizes()));
}

void check_4bit_blocksize(const char* op, int64_t blocksize) {
  if (blocksize < 32 || blocksize > 4096 || (blocksize & (blocksize - 1)))
    fail(op, ": blocksize must be one of 32, 64, 128, 256, 512, 1024, 2048, 4096, got ", blocksize);
}

int check_quant_type(const char* op, const std::string& quant_type) {
  if (quant_type == "nf4") return BNB_NF4;
  if (quant_type == "fp4") return BNB_FP4;
  fail(op, ": quant_type must be 'nf4' or 'fp4', got '", quant_type, "'");
}

int64_t check_numel_of(const char* op, const char* argument, Sizes shape) {
  int64_t n = 1;
  for (size_t i = 0; i < shape.size(); i++)
    if (shape[i] < 0 || __builtin_mul_overflow(n, shape[i], &n))
      fail(op, ": ", argument, " must be sizes of a tensor, got ", text_of(shape));
  return n;
}

void check_packed(const char* op, const char* argument, const Tensor& packed, int64_t n) {
  check_given(op, argument, packed);
  const ScalarType dtype = packed.scalar_type();
  if (dtype != ScalarType::Byte) {
    if (dtype != ScalarType::Half && dtype != ScalarType::BFloat16 && dtype != ScalarType::Float)
      fail(op, ": ", argument, " must be stored as uint8, float16, bfloat16 or float32, got ", name_of(dtype));
  }
  const int64_t bytes = packed.numel() * static_cast<int64_t>(packed.element_size());
  if (bytes < ceil_div(n, 2))
    fail(op, ": ", argument, " must hold at least ", ceil_div(n, 2), " bytes (", n, " codes of 4 bits), got ", bytes);
}

BnbDtype dtype_of(ScalarType dtype) {
  return dtype == ScalarType::Half ? BNB_FLOAT16 : dtype == ScalarType::BFloat16 ? BNB_BFLOAT16 : BNB_FLOAT32;
}

static int64_t size_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Long: return 8;
    case ScalarType::Int:
    case ScalarType::Float: return 4;
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    default: return 1;
  }
}

Tensor empty(Sizes sizes, ScalarType dtype, const Tensor& A) {
  constexpr size_t kMaxDims = 64;
  const size_t dims = sizes.size();
  if (dims > kMaxDims) fail("a tensor of ", dims, " dimensions");
  int64_t strides[kMaxDims];
  int64_t stride = 1;
  for (size_t i = dims; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  int32_t device_type;
  aoti_torch_get_device_type(A.get(), &device_type);
  const auto code = static_cast<int32_t>(torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)));
  if (const int64_t bytes = dims ? strides[0] * sizes[0] * size_of(dtype) : 0;
      bytes >= kLargeResult && device_type == aoti_torch_device_type_cpu())
    if (auto result = large_result(sizes.data(), strides, static_cast<int64_t>(dims), bytes, code)) return *result;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes.data(), strides, code, device_type,
                                                         A.get_device_index(), &handle));
  return Tensor(handle);
}

Tensor empty_like(const Tensor& A, ScalarType dtype) {
  if (A.is_contiguous()) return empty(A.sizes(), dtype, A);
  return aten("aten::empty_like", "", A, std::optional(dtype), std::optional<torch::headeronly::Layout>(),
              std::optional<torch::stable::Device>(), std::optional<bool>(), std::optional<torch::headeronly::MemoryFormat>());
}

Shape with_last(const Tensor& A, int64_t n) {
  const Sizes sizes = A.sizes();
  Shape shape(sizes.begin(), sizes.end());
  shape.back() = n;
  return shape;
}

namespace {

Backend xpu_backend{}, cpu_backend{};

bool xpu_is_lost = false;  // in a forked child of a process that had it: its queues do not work here, and may hang
bool in_forked_child = false;
const int watching_forks = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

// torch's own threads, as many as the caller has set. A child of fork has none of its parent's, and OpenMP would wait for
// them for ever.
// clang-format off
BnbThreads torch_threads{
    [](int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
      if (in_forked_child) return body(begin, end, context);
      STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
    },
    [] { return in_forked_child ? 1 : static_cast<int>(torch::stable::get_num_threads()); }};
// clang-format on

using CurrentStream = AOTITorchError (*)(int32_t, void**);

// torch's function for the current stream lies in libtorch_xpu, which a CPU build lacks: looked up, not linked.
CurrentStream find_current_stream() {
  constexpr const char* kName = "aoti_torch_get_current_xpu_stream";
  void* symbol = nullptr;
  if (void* library = dlopen("libtorch_xpu.so", RTLD_LAZY | RTLD_NOLOAD)) symbol = dlsym(library, kName);
  if (!symbol) symbol = dlsym(RTLD_DEFAULT, kName);
  if (!symbol) throw std::runtime_error(std::string("torch has no XPU device here: ") + kName + " was not found");
  return reinterpret_cast<CurrentStream>(symbol);
}

void* current_queue(int32_t device_index) {
  static const CurrentStream current_stream = find_current_stream();
  void* queue = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(current_stream(device_index, &queue));
  return queue;
}

}  // namespace

bool is_on_cpu(const Tensor& tensor) {
  int32_t type;
  aoti_torch_get_device_type(tensor.get(), &type);
  return type == aoti_torch_device_type_cpu();
}

void* sycl_on_cpu = nullptr;

Call::Call(const char* op, const Tensor& A) : op_(op), backend_(is_on_cpu(A) && !sycl_on_cpu ? cpu_backend : xpu_backend) {
  if (!backend_.dequantize_blockwise) fail(op, ": the kernel library for ", text_of_device(A), " is not loaded");
  if (&backend_ == &cpu_backend)
    queue_ = &torch_threads;
  else
    queue_ = sycl_on_cpu && is_on_cpu(A) ? sycl_on_cpu : current_queue(A.get_device_index());
}

void check_process(const char* op) {
  if (xpu_is_lost) fail(op, ": xpu cannot be used in a process forked from one that has used it: start it with the 'spawn' method");
}

Operator::Operator(const char* name_, Boxed on_cpu_, Boxed on_xpu_) : name(name_), on_cpu(on_cpu_), on_xpu(on_xpu_) {
  all().push_back(*this);
}

std::vector<Operator>& Operator::all() {
  static std::vector<Operator> operators;
  return operators;
}

}  // namespace bnb

// ---- what Python calls ----------------------------------------------------------------------------------------------
namespace {

using Library = torch::stable::detail::StableLibrary;
using Registered = std::map<std::string, std::unique_ptr<Library>>;

Registered& registered() {
  static Registered* all = new Registered;  // never destroyed: the dispatcher goes first at exit
  return *all;
}

template <class Body>
int guarded(char* message, size_t size, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    std::snprintf(message, size, "%s", e.what());
    return 1;
  }
}

}  // namespace

// Takes the kernels for a device type ("cpu" or "xpu") from the library at `path`.
BNB_EXPORT int bnb_torch_use_library(const char* device, const char* path, char* message, size_t size) {
  return guarded(message, size, [&] {
    auto& backend = std::string(device) == "cpu" ? bnb::cpu_backend : bnb::xpu_backend;
    void* library = dlopen(path, RTLD_NOW);
    if (!library) throw std::runtime_error(dlerror());
    const auto take = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function) throw std::runtime_error(std::string(path) + " has no " + name);
    };
    take(backend.gemv_4bit_inference, "cgemv_4bit_inference");
    take(backend.gemm_4bit_inference, "cgemm_4bit_inference");
    take(backend.gemm_4bit_scratch, "cgemm_4bit_scratch");
    take(backend.gemm_4bit_max_rows, "cgemm_4bit_max_rows");
    take(backend.quantize_blockwise, "cquantize_blockwise");
    take(backend.int8_vector_quant, "cint8_vector_quant");
    take(backend.int8_zero_columns, "cint8_zero_columns");
    take(backend.int8_column_quant, "cint8_column_quant");
    take(backend.int8_vector_dequant, "cint8_vector_dequant");
    take(backend.dequant_mm_int32, "cdequant_mm_int32");
    if (std::string(device) == "cpu") {
      take(backend.gemm_4bit_transposed, "cgemm_4bit_transposed");
    }
    take(backend.int8_few_rows, "cint8_few_rows");
    take(backend.int8_linear_matmul, "cint8_linear_matmul");
    take(backend.int8_scaled_mm, "cint8_scaled_mm");
    take(backend.optimizer32bit, "coptimizer32bit");
    take(backend.optimizer_static_8bit_blockwise, "coptimizer_static_8bit_blockwise");
    take(backend.is_shared, "cis_shared");
    take(backend.dequantize_blockwise, "cdequantize_blockwise");
    if (std::string(device) == "xpu") {
      take(backend.gemm_4bit_panel_bytes, "cgemm_4bit_panel_bytes");
      take(backend.int8_outlier_product, "cint8_outlier_product");
      take(backend.wait, "bnb_xpu_wait");
      // From now on, and not from the first call: bitsandbytes' own import has put tables on the device.
      [[maybe_unused]] static const int once = pthread_atfork(nullptr, nullptr, [] { bnb::xpu_is_lost = true; });
    }
  });
}

// Registers `name` (with its overload; of the namespace bitsandbytes, if it has none) for a dispatch key; a second time does
// nothing.
BNB_EXPORT int bnb_torch_register(const char* key, const char* name, char* message, size_t size) {
  return guarded(message, size, [&] {
    auto& slot = registered()[std::string(key) + "/" + name];
    if (slot) return;
    for (const auto& op : bnb::Operator::all()) {
      if (std::string(op.name) != name) continue;
      const std::string full = op.name;
      const size_t colons = full.find("::");
      const std::string space = colons == full.npos ? "bitsandbytes" : full.substr(0, colons);
      slot = std::make_unique<Library>(Library::Kind::IMPL, space.c_str(), key, __FILE__, __LINE__);
      slot->impl(op.name + (colons == full.npos ? 0 : colons + 2), std::string(key) == "CPU" ? op.on_cpu : op.on_xpu);
      return;
    }
    throw std::invalid_argument(std::string("there is no operator ") + name);
  });
}

// From now on, calls on CPU tensors run the XPU library's kernels on this queue, of a CPU device, and wait for them; null
// ends that. For checks where torch has no XPU.
BNB_EXPORT void bnb_torch_sycl_on_cpu(void* queue) { bnb::sycl_on_cpu = queue; }

// Takes back all registrations: what was registered before answers again.
BNB_EXPORT void bnb_torch_unregister_all() { registered().clear(); }

// The names of all operators, a line each.
BNB_EXPORT const char* bnb_torch_operators() {
  static const std::string text = [] {
    std::string all;
    for (const auto& op : bnb::Operator::all()) all += std::string(op.name) + "\n";
    return all;
  }();
  return text.c_str();
}
