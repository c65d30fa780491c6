// The kernel runtime: SYCL source to kernels on a device, once a process, and to bytes that a later process can load.
//
// Source is compiled by the SYCL runtime itself (sycl_ext_oneapi_kernel_compiler). What is kept of a build is the
// driver's machine code on OpenCL, through clGetProgramInfo; elsewhere the SPIR-V, since Level Zero's driver keeps a
// cache of machine code itself. Where to keep it, under which key, and whether to trust it is Python's business.
#include "runtime.h"

#include <CL/cl.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "../isa.h"
#include "xpu_sources.h"  // made by setup.py from csrc/xpu_kernels: kSources, {stem, text}

namespace bnb {

namespace syclex = sycl::ext::oneapi::experimental;

const char* name_of(Kind kind) {
  static constexpr const char* names[] = {"cpu", "gpu16", "gpu32", "xmx16", "mma32"};
  return names[static_cast<int>(kind)];
}

namespace {

// Whether BNB_INTEL_ISA, which Python checks, lets CPU kernels go as far as this instruction set.
bool allows(Isa isa) {
  const char* const most = std::getenv("BNB_INTEL_ISA");
  if (!most || !*most) return true;
  for (const IsaName& known : kIsaNames)
    if (!std::strcmp(known.name, most)) return known.isa >= isa;
  return true;
}

}  // namespace

bool cpu_has_vnni() {
  static const bool has = __builtin_cpu_supports("avx512vnni") && allows(Isa::avx512_vnni);
  return has;
}
bool cpu_has_bf16() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && allows(Isa::avx512_bf16);
  return has;
}

namespace {

std::vector<const Kernel*>& all_kernels() {
  static std::vector<const Kernel*> kernels;
  return kernels;
}

Kind kind_of(const std::string& name) {
  for (Kind kind : kKinds)
    if (name == name_of(kind)) return kind;
  throw std::invalid_argument("kind '" + name + "' is not one of cpu, gpu16, gpu32, xmx16, mma32");
}

std::vector<const Kernel*> family_members(const std::string& family, Kind kind) {
  std::vector<const Kernel*> members;
  for (const Kernel* kernel : all_kernels())
    if (kernel->kind == kind && kernel->family == family) members.push_back(kernel);
  if (members.empty()) throw std::invalid_argument("there is no kernel family '" + family + "' for " + name_of(kind));
  return members;
}

std::string source_of(const std::string& stem) {
  std::string text;
  for (const auto& source : kSources)
    if (stem == source.stem) text = source.text;
  if (text.empty()) throw std::logic_error("no kernel source '" + stem + "'");
  return text;
}

// ---- bytes of a build: magic, format, images, and for each kernel its image and its name in it ----------------------
constexpr char kMagic[8] = {'b', 'n', 'b', 'x', 'p', 'u', '0', '1'};
enum class Stored : uint64_t { opencl_binary = 1, spirv = 2 };

class Writer {
 public:
  void number(uint64_t value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void text(const std::string& s) {
    number(s.size());
    bytes_ += s;
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), left_(size) {}
  uint64_t number() {
    uint64_t value;
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string text() {
    const uint64_t n = number();
    return {take(n), n};
  }
  const char* take(uint64_t n) {
    if (n > left_) throw std::runtime_error("the kept kernels are truncated");
    const char* p = at_;
    at_ += n;
    left_ -= n;
    return p;
  }
  bool done() const { return left_ == 0; }

 private:
  const char* at_;
  size_t left_;
};

struct Built {
  std::vector<sycl::kernel> kernels;  // in the order of family_members
  std::string bytes;
};

// ---- OpenCL, reached through the loader that SYCL has loaded ---------------------------------------------------------
struct OpenCL {
  decltype(&clGetKernelInfo) get_kernel_info;
  decltype(&clGetProgramInfo) get_program_info;
  decltype(&clCreateProgramWithBinary) create_program_with_binary;
  decltype(&clBuildProgram) build_program;
  decltype(&clCreateKernel) create_kernel;

  static const OpenCL& get() {
    static const OpenCL instance = [] {
      void* library = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_NOLOAD);
      if (!library) library = dlopen("libOpenCL.so.1", RTLD_NOW);
      const auto symbol = [&](auto& function, const char* name) {
        function = library ? reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name)) : nullptr;
        if (!function) throw std::runtime_error(std::string("libOpenCL.so.1 has no ") + name);
      };
      OpenCL cl;
      symbol(cl.get_kernel_info, "clGetKernelInfo");
      symbol(cl.get_program_info, "clGetProgramInfo");
      symbol(cl.create_program_with_binary, "clCreateProgramWithBinary");
      symbol(cl.build_program, "clBuildProgram");
      symbol(cl.create_kernel, "clCreateKernel");
      return cl;
    }();
    return instance;
  }
};

void check_cl(cl_int status, const char* what) {
  if (status != CL_SUCCESS) throw std::runtime_error(std::string(what) + " failed with OpenCL status " + std::to_string(status));
}

template <class Object, class Info>
auto cl_value(Object object, Info info, cl_uint what, auto initial) {
  check_cl(info(object, what, sizeof initial, &initial, nullptr), "clGetInfo");
  return initial;
}

std::string opencl_binaries(const std::vector<sycl::kernel>& kernels, const std::vector<std::string>& names) {
  const OpenCL& cl = OpenCL::get();
  std::vector<cl_program> programs;
  std::vector<uint64_t> program_of;
  for (const sycl::kernel& kernel : kernels) {
    const cl_program program =
        cl_value(sycl::get_native<sycl::backend::opencl>(kernel), cl.get_kernel_info, CL_KERNEL_PROGRAM, cl_program{});
    size_t i = 0;
    while (i < programs.size() && programs[i] != program) i++;
    if (i == programs.size()) programs.push_back(program);
    program_of.push_back(i);
  }
  Writer writer;
  writer.number(static_cast<uint64_t>(Stored::opencl_binary));
  writer.number(programs.size());
  for (cl_program program : programs) {
    std::string binary(cl_value(program, cl.get_program_info, CL_PROGRAM_BINARY_SIZES, size_t{}), '\0');
    if (binary.empty()) throw std::runtime_error("the OpenCL driver gives no binary");
    auto* start = reinterpret_cast<unsigned char*>(binary.data());
    check_cl(cl.get_program_info(program, CL_PROGRAM_BINARIES, sizeof start, &start, nullptr), "clGetProgramInfo");
    writer.text(binary);
  }
  for (size_t i = 0; i < names.size(); i++) {
    writer.number(program_of[i]);
    writer.text(names[i]);
  }
  return writer.take();
}

std::vector<std::string> build_options(Kind kind, bool is_gpu) {
  // Our kernels need no device library; libsycl 8 looks for one, in files that its package on PyPI lacks.
  std::vector<std::string> options;
#if __LIBSYCL_MAJOR_VERSION < 9
  options.push_back("-fno-sycl-device-lib=all");
  // Its compiler takes fmaf for a function that sets errno, and would leave a call of it: a GPU has none.
  options.push_back("-fno-math-errno");
#endif
  // A CPU device that counts as a GPU has no XMX, which the kernels emulate there, and no sizes of a register file.
  if (is_gpu) {
    if (kind == Kind::xmx16) options.push_back("-DBNB_XMX");
    if (sub_group_size(kind) == 16) options.push_back("-DBNB_INTEL_GPU");
    if (kind == Kind::gpu16) options.push_back("-DBNB_REGISTER_BYTES=32");
  }
  return options;
}

sycl::kernel_bundle<sycl::bundle_state::executable> build_source(const Device& device, const std::vector<const Kernel*>& members) {
  std::vector<std::string> names;
  for (const Kernel* kernel : members) names.push_back(kernel->name);
  auto bundle =
      syclex::create_kernel_bundle_from_source(device.context, syclex::source_language::sycl, source_of(members[0]->stem));
  return syclex::build(bundle, {device.device},
                       syclex::properties{syclex::build_options{device.options}, syclex::registered_names{names}});
}

std::vector<std::string> images_of(const sycl::kernel_bundle<sycl::bundle_state::executable>& bundle) {
  std::vector<std::string> images;
  for (const auto& image : bundle) {
    const auto content = image.ext_oneapi_get_backend_content();
    images.emplace_back(reinterpret_cast<const char*>(content.data()), content.size());
  }
  return images;
}

Built compile(const Device& device, const std::vector<const Kernel*>& members, bool spirv) {
  auto bundle = build_source(device, members);
  Built built;
  std::vector<std::string> raw_names;
  for (const Kernel* kernel : members) {
    // A kernel that needs what the device lacks (fp16, say) is left out of the bundle without an error.
    if (!bundle.ext_oneapi_has_kernel(kernel->name))
      throw std::runtime_error("kernel " + kernel->name + " cannot run on " + device.description);
    built.kernels.push_back(bundle.ext_oneapi_get_kernel(kernel->name));
    raw_names.push_back(bundle.ext_oneapi_get_raw_kernel_name(kernel->name));
  }
  std::string stored;
  if (!spirv && device.device.get_backend() == sycl::backend::opencl) {
    stored = opencl_binaries(built.kernels, raw_names);
  } else {
    Writer writer;
    writer.number(static_cast<uint64_t>(Stored::spirv));
    const auto images = images_of(bundle);
    writer.number(images.size());
    for (const auto& image : images) writer.text(image);
    for (const auto& name : raw_names) {
      size_t i = 0;
      while (i < images.size() && images[i].find(name) == std::string::npos) i++;
      writer.number(i);
      writer.text(name);
    }
    stored = writer.take();
  }
  built.bytes = std::string(kMagic, sizeof kMagic) + stored;
  return built;
}

std::vector<sycl::kernel> load(const Device& device, const std::vector<const Kernel*>& members, const char* data, size_t size) {
  Reader reader(data, size);
  if (std::memcmp(reader.take(sizeof kMagic), kMagic, sizeof kMagic) != 0) throw std::runtime_error("these are not kept kernels");
  const uint64_t format = reader.number();
  std::vector<std::string> images(0);
  for (uint64_t left = reader.number(); left; left--) images.push_back(reader.text());
  std::vector<sycl::kernel> kernels;
  if (format == static_cast<uint64_t>(Stored::opencl_binary) && device.device.get_backend() == sycl::backend::opencl) {
    const OpenCL& cl = OpenCL::get();
    const cl_context context = sycl::get_native<sycl::backend::opencl>(device.context);
    cl_device_id id = sycl::get_native<sycl::backend::opencl>(device.device);
    std::vector<cl_program> programs;
    for (const auto& image : images) {
      const auto* start = reinterpret_cast<const unsigned char*>(image.data());
      const size_t length = image.size();
      cl_int status, binary_status;
      programs.push_back(cl.create_program_with_binary(context, 1, &id, &length, &start, &binary_status, &status));
      check_cl(status, "clCreateProgramWithBinary");
      check_cl(cl.build_program(programs.back(), 1, &id, "", nullptr, nullptr), "clBuildProgram");
    }
    for (size_t i = 0; i < members.size(); i++) {
      const cl_program program = programs.at(reader.number());
      cl_int status;
      const cl_kernel kernel = cl.create_kernel(program, reader.text().c_str(), &status);
      check_cl(status, "clCreateKernel");
      kernels.push_back(sycl::make_kernel<sycl::backend::opencl>(kernel, device.context));
    }
  } else if (format == static_cast<uint64_t>(Stored::spirv)) {
    std::vector<sycl::kernel_bundle<sycl::bundle_state::executable>> bundles;
    for (const auto& image : images) {
      const auto* start = reinterpret_cast<const std::byte*>(image.data());
      auto bundle = syclex::create_kernel_bundle_from_source(device.context, syclex::source_language::spirv,
                                                             std::vector<std::byte>(start, start + image.size()));
      bundles.push_back(syclex::build(bundle, {device.device}));
    }
    for (size_t i = 0; i < members.size(); i++) {
      auto& bundle = bundles.at(reader.number());
      kernels.push_back(bundle.ext_oneapi_get_kernel(reader.text()));
    }
  } else {
    throw std::runtime_error("the kept kernels are of another backend");
  }
  if (!reader.done()) throw std::runtime_error("the kept kernels have bytes left over");
  return kernels;
}

char* copy_out(const std::string& bytes, size_t* size) {
  char* data = new char[bytes.size()];
  std::memcpy(data, bytes.data(), bytes.size());
  *size = bytes.size();
  return data;
}

// A copy of the text that lives as long as the process.
const char* keep(std::string text) {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<std::string>> kept;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& slot = kept[text];
  if (!slot) slot = std::make_unique<std::string>(std::move(text));
  return slot->c_str();
}

}  // namespace

struct Runtime {
  std::recursive_mutex mutex;  // recursive: a builder calls back for the compile or the load
  std::array<std::unique_ptr<Device>, kMaxDevices> devices;
  std::atomic<int> count{0};
  std::atomic<BnbBuilder> builder{nullptr};
  std::optional<Kind> forced_kind;

  // Never destroyed: kernels and contexts must not outlive SYCL's own teardown by running after it.
  static Runtime& get() {
    static Runtime* runtime = new Runtime;
    return *runtime;
  }

  Device& at(int index) {
    if (index < 0 || index >= count.load(std::memory_order_acquire))
      throw std::invalid_argument("there is no opened device " + std::to_string(index));
    return *devices[index];
  }

  Device* find(const sycl::queue& queue) {
    const int n = count.load(std::memory_order_acquire);
    if (!n) return nullptr;
    const sycl::device device = queue.get_device();
    const sycl::context context = queue.get_context();
    for (int i = 0; i < n; i++)
      if (devices[i]->device == device && devices[i]->context == context) return devices[i].get();
    return nullptr;
  }

  Device& open(const sycl::queue& queue) {
    const std::lock_guard<std::recursive_mutex> lock(mutex);
    if (Device* known = find(queue)) return *known;
    const int index = count.load();
    if (index == kMaxDevices) throw std::runtime_error("more than " + std::to_string(kMaxDevices) + " devices or contexts");
    const sycl::device device = queue.get_device();
    const auto sizes = device.get_info<sycl::info::device::sub_group_sizes>();
    const auto has = [&](size_t size) { return std::find(sizes.begin(), sizes.end(), size) != sizes.end(); };
    const std::string name = device.get_info<sycl::info::device::name>();
    if (!has(16) && !has(32)) throw std::runtime_error(name + " has no sub-group size of 16 or 32");
    // XMX of GPUs that also have sub-groups of 8 (Arc A) takes those and no others.
    const bool xmx = has(16) && !has(8) && device.has(sycl::aspect::ext_intel_matrix);
    const Kind kind = forced_kind       ? *forced_kind
                      : device.is_cpu() ? Kind::cpu
                      : xmx             ? Kind::xmx16
                      : has(16)         ? Kind::gpu16
                                        : Kind::gpu32;
    // An Xe vector engine holds eight threads; sub-groups of 16 fill them.
    const int64_t lanes = device.get_info<sycl::info::device::max_compute_units>() * (kind == Kind::cpu ? 16LL : 128LL);
    std::ostringstream description, backend;
    backend << device.get_backend();
    description << name_of(kind) << '\n'
                << backend.str() << '\n'
                << name << '\n'
                << device.get_info<sycl::info::device::version>() << '\n'
                << device.get_info<sycl::info::device::driver_version>() << '\n';
    const std::vector<std::string> options = build_options(kind, device.is_gpu());
    for (const auto& option : options) description << option << ' ';
    devices[index].reset(new Device{index, kind, queue.get_context(), device, lanes, options, description.str()});
    count.store(index + 1, std::memory_order_release);
    return *devices[index];
  }

  void install(const Device& device, const std::vector<const Kernel*>& members, std::vector<sycl::kernel> kernels) {
    for (size_t i = 0; i < members.size(); i++) {
      auto& slot = members[i]->built_[device.index];
      if (!slot.load()) slot.store(new sycl::kernel(std::move(kernels[i])), std::memory_order_release);
    }
  }

  static bool is_built(const Device& device, const std::vector<const Kernel*>& members) {
    for (const Kernel* kernel : members)
      if (!kernel->built_[device.index].load(std::memory_order_acquire)) return false;
    return true;
  }
};

Device& device_of(const sycl::queue& queue) {
  Runtime& runtime = Runtime::get();
  Device* device = runtime.find(queue);
  return device ? *device : runtime.open(queue);
}

Kernel::Kernel(std::string family_, const char* stem_, Kind kind_, std::string name_)
    : family(std::move(family_)), stem(stem_), kind(kind_), name(std::move(name_)) {
  all_kernels().push_back(this);
}

const sycl::kernel* Kernel::build(const Device& device) const {
  Runtime& runtime = Runtime::get();
  const std::lock_guard<std::recursive_mutex> lock(runtime.mutex);
  auto& slot = built_[device.index];
  if (const sycl::kernel* kernel = slot.load()) return kernel;
  if (const BnbBuilder builder = runtime.builder.load()) {
    char message[2048] = "no reason given";
    if (builder(device.index, family.c_str(), message, sizeof message))
      throw std::runtime_error("building kernels '" + family + "' failed: " + message);
  } else {
    const auto members = family_members(family, device.kind);
    runtime.install(device, members, compile(device, members, false).kernels);
  }
  if (const sycl::kernel* kernel = slot.load()) return kernel;
  throw std::logic_error("the builder did not build '" + family + "'");
}

}  // namespace bnb

using bnb::guarded;
using bnb::Runtime;

void bnb_xpu_set_builder(BnbBuilder builder) { Runtime::get().builder.store(builder); }

int bnb_xpu_open(void* queue, char* message, size_t message_size) {
  int index = -1;
  guarded(message, message_size, [&] { index = bnb::device_of(*static_cast<sycl::queue*>(queue)).index; });
  return index;
}

const char* bnb_xpu_describe(int device) {
  const char* text = nullptr;
  guarded(nullptr, 0, [&] { text = Runtime::get().at(device).description.c_str(); });
  return text;
}

const char* bnb_xpu_families(const char* kind) {
  const char* text = nullptr;
  guarded(nullptr, 0, [&] {
    const bnb::Kind wanted = bnb::kind_of(kind);
    std::vector<std::string> order;
    std::map<std::string, std::string> lines;
    for (const bnb::Kernel* kernel : bnb::all_kernels()) {
      if (kernel->kind != wanted) continue;
      std::string& line = lines[kernel->family];
      if (line.empty()) order.push_back(line = kernel->family);
      line += "\t" + kernel->name;
    }
    std::string all;
    for (const auto& family : order) all += lines[family] + "\n";
    text = bnb::keep(all);
  });
  return text;
}

const char* bnb_xpu_source(const char* family) {
  const char* text = nullptr;
  guarded(nullptr, 0, [&] {
    for (const bnb::Kernel* kernel : bnb::all_kernels())
      if (kernel->family == family) {
        text = bnb::keep(bnb::source_of(kernel->stem));
        return;
      }
  });
  return text;
}

int bnb_xpu_is_built(int device, const char* family) {
  bool built = false;
  guarded(nullptr, 0, [&] {
    const bnb::Device& d = Runtime::get().at(device);
    built = Runtime::is_built(d, bnb::family_members(family, d.kind));
  });
  return built;
}

int bnb_xpu_compile(int device, const char* family, int format, char** data, size_t* size, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    Runtime& runtime = Runtime::get();
    const std::lock_guard<std::recursive_mutex> lock(runtime.mutex);
    const bnb::Device& d = runtime.at(device);
    const auto members = bnb::family_members(family, d.kind);
    bnb::Built built = bnb::compile(d, members, format == BNB_FORMAT_SPIRV);
    *data = bnb::copy_out(built.bytes, size);
    runtime.install(d, members, std::move(built.kernels));
  });
}

int bnb_xpu_load(int device, const char* family, const char* data, size_t size, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    Runtime& runtime = Runtime::get();
    const std::lock_guard<std::recursive_mutex> lock(runtime.mutex);
    const bnb::Device& d = runtime.at(device);
    const auto members = bnb::family_members(family, d.kind);
    runtime.install(d, members, bnb::load(d, members, data, size));
  });
}

int bnb_xpu_spirv(int device, const char* family, const char* kind, char** data, size_t* size, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    bnb::Writer writer;
    for (const auto& image :
         bnb::images_of(bnb::build_source(Runtime::get().at(device), bnb::family_members(family, bnb::kind_of(kind)))))
      writer.text(image);
    *data = bnb::copy_out(writer.take(), size);
  });
}

void bnb_xpu_free(char* data) { delete[] data; }

int bnb_xpu_force_kind(const char* kind, char* message, size_t message_size) {
  return guarded(message, message_size, [&] {
    Runtime& runtime = Runtime::get();
    const std::lock_guard<std::recursive_mutex> lock(runtime.mutex);
    runtime.forced_kind = *kind ? std::optional(bnb::kind_of(kind)) : std::nullopt;
  });
}

void* bnb_xpu_new_queue(char* message, size_t message_size) {
  void* queue = nullptr;
  guarded(message, message_size, [&] { queue = new sycl::queue(sycl::property::queue::in_order()); });
  return queue;
}

int bnb_xpu_wait(void* queue, char* message, size_t message_size) {
  return guarded(message, message_size, [&] { static_cast<sycl::queue*>(queue)->wait_and_throw(); });
}

void bnb_xpu_delete_queue(void* queue) { delete static_cast<sycl::queue*>(queue); }
