// Kernels on devices: which there are, how one is found, built, kept and submitted. See runtime.cpp.
#pragma once

#include <sycl/sycl.hpp>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "xpu_ops.h"

namespace bnb {

using half = sycl::half;
using bfloat16 = sycl::ext::oneapi::bfloat16;

enum DataType { General8bit = BNB_GENERAL8BIT, FP4 = BNB_FP4, NF4 = BNB_NF4 };
constexpr const char* kDataTypeNames[] = {"General8bit", "FP4", "NF4"};  // in kernel source

// Kernels come in shapes. The shape follows from the kind of device, and nothing else looks at what device it is.
// xmx16 is a gpu16 whose matrix unit takes sub-groups of 16; mma32 is NVIDIA's, which only benchmarks/ptx runs on.
enum class Kind { cpu, gpu16, gpu32, xmx16, mma32 };
constexpr std::array<Kind, 5> kKinds{Kind::cpu, Kind::gpu16, Kind::gpu32, Kind::xmx16, Kind::mma32};
const char* name_of(Kind kind);
// The sub-group size that kernels for this kind are compiled with.
constexpr int sub_group_size(Kind kind) { return kind == Kind::gpu32 || kind == Kind::mma32 ? 32 : 16; }
constexpr bool has_matrix_unit(Kind kind) { return kind == Kind::xmx16 || kind == Kind::mma32; }

// Whether kernels written for such instructions run on CPU devices: the CPU has them, and BNB_INTEL_ISA, read once, does not stop
// short of them.
bool cpu_has_vnni();
bool cpu_has_bf16();

constexpr int kMaxDevices = 64;

struct Device {
  int index;
  Kind kind;
  sycl::context context;
  sycl::device device;
  int64_t lanes;  // work-items that the device runs at once, about
  std::vector<std::string> options;  // of builds
  std::string description;
};

// The device of a queue. Throws if it is one that our kernels cannot run on.
Device& device_of(const sycl::queue& queue);

// One kernel: an instantiation of a template in a file of csrc/xpu_kernels, for one kind of device. Kernels that are
// used together are built together, as a family. Objects are static and register themselves.
class Kernel {
 public:
  Kernel(std::string family, const char* stem, Kind kind, std::string name);
  Kernel(const Kernel&) = delete;

  // Submit with these arguments, in order. Sizes are checked here: SYCL takes a range that does not divide in silence.
  template <class... Args>
  void submit(sycl::queue& queue, int64_t groups, int64_t group_size, Args... args) const {
    const Device& device = device_of(queue);
    const sycl::kernel* kernel = built_[device.index].load(std::memory_order_acquire);
    if (!kernel) kernel = build(device);
    const sycl::nd_range<1> range(static_cast<size_t>(groups * group_size), static_cast<size_t>(group_size));
    sycl::ext::oneapi::experimental::nd_launch(queue, range, *kernel, args...);
  }

  const std::string family;
  const std::string stem;  // of the source file
  const Kind kind;
  const std::string name;  // as the compiler is asked for it

 private:
  friend struct Runtime;
  const sycl::kernel* build(const Device& device) const;
  mutable std::array<std::atomic<const sycl::kernel*>, kMaxDevices> built_{};
};

// The kernels of one launch: for each kind of device, one for each of `paths` ways to run. A path that names the same
// instantiation as another shares its kernel.
struct KernelName {
  std::string family, name;
};
class KernelTable {
 public:
  template <class NameOf>
  KernelTable(NameOf&& name_of, const char* stem, size_t paths) {
    for (Kind kind : kKinds) {
      auto& row = kernels_[static_cast<size_t>(kind)];
      for (size_t path = 0; path < paths; path++) {
        KernelName wanted = name_of(kind, static_cast<int>(path));
        if (wanted.name.empty()) {  // a way that this kind does not go
          row.push_back(nullptr);
          continue;
        }
        std::shared_ptr<const Kernel> kernel;
        for (const auto& other : row)
          if (other && other->family == wanted.family && other->name == wanted.name) kernel = other;
        if (!kernel) kernel = std::make_shared<const Kernel>(std::move(wanted.family), stem, kind, std::move(wanted.name));
        row.push_back(std::move(kernel));
      }
    }
  }
  const Kernel& at(Kind kind, size_t path) const { return *kernels_[static_cast<size_t>(kind)][path]; }

 private:
  std::array<std::vector<std::shared_ptr<const Kernel>>, kKinds.size()> kernels_;
};

// "base<a, b, c>"
template <class... Args>
std::string instantiation(const char* base, Args... args) {
  std::string text(base);
  char separator = '<';
  const auto add = [&](const std::string& arg) {
    text += separator;
    text += arg;
    separator = ',';
  };
  const auto as_text = [](const auto& arg) {
    if constexpr (std::is_convertible_v<decltype(arg), std::string>)
      return std::string(arg);
    else
      return std::to_string(arg);
  };
  (add(as_text(args)), ...);
  return text + ">";
}

// The name of an element type in kernel source.
template <class T>
constexpr const char* type_name = nullptr;
template <>
inline constexpr const char* type_name<half> = "bnb::half";
template <>
inline constexpr const char* type_name<bfloat16> = "bnb::bfloat16";
template <>
inline constexpr const char* type_name<float> = "float";

// The same without a name space, for the names of families.
template <class T>
constexpr const char* short_name = nullptr;
template <>
inline constexpr const char* short_name<half> = "float16";
template <>
inline constexpr const char* short_name<bfloat16> = "bfloat16";
template <>
inline constexpr const char* short_name<float> = "float32";

// log2 of a power of two; -1 for anything else.
inline int32_t shift_of(int64_t blocksize) {
  return blocksize > 0 && (blocksize & (blocksize - 1)) == 0 ? __builtin_ctzll(blocksize) : -1;
}

// Kernels for GPUs count what a lane takes (4 or 8 elements) in 32 bits, up to so many elements.
constexpr int64_t k32BitWords = int64_t{1} << 34;

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Runs `body`; what it throws becomes a status and a message.
template <class Body>
int guarded(char* message, size_t message_size, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& e) {
    if (message && message_size) std::snprintf(message, message_size, "%s", e.what());
  } catch (...) {
    if (message && message_size) std::snprintf(message, message_size, "unknown exception");
  }
  return 1;
}

// Calls body(T{}) with the type that a BnbDtype names.
template <class Body>
void with_dtype(int dtype, Body&& body) {
  switch (dtype) {
    case BNB_FLOAT16: return body(half{});
    case BNB_BFLOAT16: return body(bfloat16{});
    case BNB_FLOAT32: return body(float{});
  }
  throw std::invalid_argument("dtype " + std::to_string(dtype) + " is not one of float16, bfloat16, float32");
}

}  // namespace bnb
