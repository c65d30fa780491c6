// The C interface: what Python calls through ctypes, and torch's own names for what native operators look up.
#include <torch/library.h>

#include <cstring>
#include <exception>

#include "allocator.h"
#include "device.h"
#include "fallback.h"
#include "queues.h"

#define VXPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string t_error;

// Runs `body`; 0 if it succeeded, else 1 with the message kept for vxpu_last_error().
template <class Body>
int32_t guarded(Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    t_error = error.what();
  } catch (...) {
    t_error = "unknown error";
  }
  return 1;
}

// Copies a text for the caller; returns the size it needs.
size_t hand_out(const std::string& text, char* buffer, size_t size) noexcept {
  if (buffer != nullptr && size > text.size()) std::memcpy(buffer, text.c_str(), text.size() + 1);
  return text.size() + 1;
}

}  // namespace

// As in torch/csrc/inductor/aoti_torch/c/shim_xpu.h, which libtorch_xpu implements.
VXPU_EXPORT int32_t aoti_torch_get_current_xpu_stream(int32_t, void** stream) {
  return guarded([&] { *stream = vxpu::stream_queue(vxpu::current_stream()); });
}
VXPU_EXPORT int32_t aoti_torch_get_current_sycl_queue(void** queue) {
  return guarded([&] { *queue = vxpu::stream_queue(vxpu::current_stream()); });
}
VXPU_EXPORT int32_t aoti_torch_get_current_xpu_device(int32_t* index) {
  *index = 0;
  return 0;
}
VXPU_EXPORT int32_t aoti_torch_set_current_xpu_device(const int32_t& index) { return index == 0 ? 0 : 1; }

VXPU_EXPORT const char* vxpu_last_error() { return t_error.c_str(); }
VXPU_EXPORT int32_t vxpu_start() {
  return guarded([] { vxpu::start(); });
}
VXPU_EXPORT void vxpu_shut_down() { vxpu::shut_down(); }
VXPU_EXPORT int32_t vxpu_in_bad_fork() { return vxpu::in_bad_fork(); }
VXPU_EXPORT int32_t vxpu_hooks_active() { return vxpu::hooks_active(); }
// Registers everything with torch; not done by static initialisers, from which no error can be reported.
VXPU_EXPORT int32_t vxpu_register() {
  return guarded([] {
    vxpu::register_allocators();
    vxpu::register_fallback();
    vxpu::register_aten();
    vxpu::register_collectives();
    // Lets Python have the default generator as an object: only an operator can return one without Python's headers.
    static auto* library =
        new torch::Library(torch::Library::DEF, "bitsandbytes_intel_virtual_xpu", std::nullopt, __FILE__, __LINE__);
    library->def("default_generator() -> Generator?", []() -> at::Generator { return vxpu::default_generator(); });
  });
}

VXPU_EXPORT int64_t vxpu_current_stream() { return vxpu::current_stream(); }
VXPU_EXPORT int32_t vxpu_set_stream(int64_t stream) {
  return guarded([&] {
    vxpu::stream_queue(stream);  // throws for what is no stream
    vxpu::exchange_stream(stream);
  });
}
// The sycl::queue* of the current stream; null on failure.
VXPU_EXPORT void* vxpu_current_queue() {
  void* queue = nullptr;
  guarded([&] { queue = vxpu::stream_queue(vxpu::current_stream()); });
  return queue;
}
VXPU_EXPORT int32_t vxpu_stream_queue(int64_t stream, void** queue) {
  return guarded([&] { *queue = vxpu::stream_queue(stream); });
}
VXPU_EXPORT int64_t vxpu_stream_priority(int64_t stream) { return vxpu::stream_priority(stream); }
VXPU_EXPORT int32_t vxpu_stream_of_queue(void* queue, int64_t* stream) {
  return guarded([&] { *stream = vxpu::stream_of_queue(queue); });
}
VXPU_EXPORT int32_t vxpu_event_elapsed_ms(void* begin, void* end, double* milliseconds) {
  return guarded([&] { *milliseconds = vxpu::event_elapsed_ms(begin, end); });
}
VXPU_EXPORT int32_t vxpu_synchronize() {
  return guarded([] { vxpu::wait_all(); });
}

VXPU_EXPORT int32_t vxpu_empty_cache() {
  return guarded([] { vxpu::allocator()->emptyCache(); });
}
VXPU_EXPORT void vxpu_reset_peak_stats() { vxpu::allocator()->resetPeakStats(0); }
VXPU_EXPORT void vxpu_reset_accumulated_stats() { vxpu::allocator()->resetAccumulatedStats(0); }
VXPU_EXPORT int32_t vxpu_memory_info(int64_t* free, int64_t* total) {
  return guarded([&] {
    const auto use = vxpu::memory_use();
    *free = static_cast<int64_t>(use.free);
    *total = static_cast<int64_t>(use.total);
  });
}
VXPU_EXPORT double vxpu_memory_fraction() { return vxpu::memory_fraction(); }
VXPU_EXPORT int32_t vxpu_set_memory_fraction(double fraction) {
  return guarded([&] { vxpu::set_memory_fraction(fraction); });
}

// The allocator's figures, one line "stat.pool<TAB>current<TAB>peak<TAB>allocated<TAB>freed" or "counter<TAB>value".
VXPU_EXPORT size_t vxpu_memory_stats(char* buffer, size_t size) {
  const auto stats = vxpu::allocator()->getDeviceStats(0);
  std::string text;
  const auto add = [&](const char* name, const c10::CachingAllocator::StatArray& array) {
    const char* const pools[] = {"all", "small_pool", "large_pool"};
    for (size_t i = 0; i < array.size(); ++i) {
      text += std::string(name) + "." + pools[i];
      for (int64_t value : {array[i].current, array[i].peak, array[i].allocated, array[i].freed}) {
        text += "\t" + std::to_string(value);
      }
      text += "\n";
    }
  };
  add("allocation", stats.allocation);
  add("segment", stats.segment);
  add("active", stats.active);
  add("allocated_bytes", stats.allocated_bytes);
  add("reserved_bytes", stats.reserved_bytes);
  add("active_bytes", stats.active_bytes);
  add("requested_bytes", stats.requested_bytes);
  text += "num_alloc_retries\t" + std::to_string(stats.num_alloc_retries) + "\n";
  text += "num_ooms\t" + std::to_string(stats.num_ooms) + "\n";
  return hand_out(text, buffer, size);
}

// The device's properties, one line "name<TAB>value" each.
VXPU_EXPORT size_t vxpu_device_properties(char* buffer, size_t size) {
  std::string text;
  if (guarded([&] {
    const vxpu::DeviceInfo& info = vxpu::device_info();
    const auto add = [&](const char* name, const std::string& value) { text += std::string(name) + "\t" + value + "\n"; };
    add("name", info.name);
    add("platform_name", info.platform_name);
    add("vendor", info.vendor);
    add("driver_version", info.driver_version);
    add("version", info.version);
    add("device_id", std::to_string(info.device_id));
    add("max_compute_units", std::to_string(info.max_compute_units));
    add("max_work_group_size", std::to_string(info.max_work_group_size));
    add("max_num_sub_groups", std::to_string(info.max_num_sub_groups));
    add("local_mem_size", std::to_string(info.local_mem_size));
    add("last_level_cache_size", std::to_string(info.last_level_cache_size));
    add("total_memory", std::to_string(info.total_memory));
    std::string sizes;
    for (int64_t value : info.sub_group_sizes) sizes += std::to_string(value) + " ";
    add("sub_group_sizes", sizes);
    add("has_fp16", std::to_string(info.has_fp16));
    add("has_fp64", std::to_string(info.has_fp64));
    add("has_atomic64", std::to_string(info.has_atomic64));
  }) != 0) {
    return 0;
  }
  return hand_out(text, buffer, size);
}

VXPU_EXPORT size_t vxpu_fallback_counts(char* buffer, size_t size) { return hand_out(vxpu::fallback_counts(), buffer, size); }
VXPU_EXPORT void vxpu_reset_fallback_counts() { vxpu::reset_fallback_counts(); }
