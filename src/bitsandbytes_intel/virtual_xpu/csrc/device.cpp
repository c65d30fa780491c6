#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "allocator.h"
#include "queues.h"

namespace vxpu {

void check_index(c10::DeviceIndex index) {
  TORCH_CHECK(index == 0 || index == -1, "device index ", static_cast<int>(index),
              " is out of range: the virtual XPU is one device, xpu:0");
}

namespace {

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::XPU; }
  c10::Device exchangeDevice(c10::Device device) const override {
    check_index(device.index());
    return kDevice;
  }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device device) const override { check_index(device.index()); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::DeviceCapability getDeviceCapability(c10::Device) const override { return {}; }

  static c10::Stream wrap(StreamId id) { return c10::Stream(c10::Stream::UNSAFE, kDevice, id); }
  c10::Stream getStream(c10::Device) const override { return wrap(current_stream()); }
  c10::Stream getDefaultStream(c10::Device) const override { return wrap(0); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool high) const override { return wrap(new_stream(high ? -1 : 0)); }
  c10::Stream getNewStream(c10::Device, int priority) const override { return wrap(new_stream(priority)); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return wrap(exchange_stream(stream.id())); }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return stream_queue(stream.id()); }
  bool queryStream(const c10::Stream& stream) const override { return stream_done(stream.id()); }
  void synchronizeStream(const c10::Stream& stream) const override { wait_stream(stream.id()); }
  void synchronizeDevice(c10::DeviceIndex index) const override {
    check_index(index);
    wait_all();
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    allocator()->recordStream(data, stream);
  }

  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { event_destroy(event); }
  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag flag) const override {
    event_record(event, stream.id(), flag == c10::EventFlag::BACKEND_DEFAULT);
  }
  void block(void* event, const c10::Stream& stream) const override { event_block(event, stream.id()); }
  bool queryEvent(void* event) const override { return event_done(event); }
  void synchronizeEvent(void* event) const override { event_wait(event); }
  double elapsedTime(void* begin, void* end, c10::DeviceIndex) const override { return event_elapsed_ms(begin, end); }
};

C10_REGISTER_GUARD_IMPL(XPU, Guard)

// A CPU generator in the clothes of an XPU one, since the device of at::CPUGeneratorImpl is fixed.
struct GeneratorImpl final : c10::GeneratorImpl {
  explicit GeneratorImpl(at::Generator cpu)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::XPU)), cpu_(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { cpu_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu_.set_offset(offset); }
  uint64_t get_offset() const override { return cpu_.get_offset(); }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override { return cpu_.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu_.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu_.unsafeGetGeneratorImpl()->get_state(); }

  at::Generator cpu_;

 private:
  GeneratorImpl* clone_impl() const override { return new GeneratorImpl(cpu_.clone()); }
};

}  // namespace

const at::Generator& default_generator() {
  // Leaked on purpose: Python holds it until after static destructors.
  static auto* generator = new at::Generator(at::make_generator<GeneratorImpl>(at::detail::createCPUGenerator()));
  return *generator;
}

at::Generator borrowed_generator(const at::Generator& generator) {
  return static_cast<GeneratorImpl*>(generator.unsafeGetGeneratorImpl())->cpu_;
}

// torch looks for a class of this very name.
struct XPUHooks final : at::XPUHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasXPU() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return started(); }
  void init() const override { start(); }
  std::string showConfig() const override { return "virtual XPU"; }
  int32_t getGlobalIdxFromDevice(const c10::Device& device) const override {
    check_index(device.index());
    return 0;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    check_index(index);
    return default_generator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    check_index(index);
    return at::make_generator<GeneratorImpl>(at::detail::createCPUGenerator());
  }
  c10::DeviceIndex getNumGPUs() const override { return 1; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex index) const override { check_index(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    check_index(index);
    return 0;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  void deviceSynchronize(c10::DeviceIndex index) const override {
    check_index(index);
    wait_all();
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    start();
    return pinned_allocator();
  }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
};

bool hooks_active() { return dynamic_cast<const XPUHooks*>(&at::detail::getXPUHooks()) != nullptr; }

}  // namespace vxpu

namespace at {
using vxpu::XPUHooks;
REGISTER_XPU_HOOKS(XPUHooks);
}  // namespace at
