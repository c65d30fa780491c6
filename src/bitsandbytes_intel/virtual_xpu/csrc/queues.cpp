#include "queues.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <sycl/sycl.hpp>

namespace vxpu {
namespace {

constexpr StreamId kPoolSize = 32;  // queues of one priority
constexpr StreamId kPriorities = 3;  // high, normal, low: accepted and remembered; the CPU device knows but one
constexpr StreamId kOwnStreams = 1 + kPriorities * kPoolSize;
static_assert(kOwnStreams <= kExternalStreams);

struct State {
  State(const sycl::device& found, DeviceInfo described)
      : device(found), context(found.get_platform().khr_get_default_context()), info(std::move(described)) {}

  sycl::device device;
  sycl::context context;
  DeviceInfo info;
  std::mutex mutex;
  std::array<std::atomic<sycl::queue*>, kOwnStreams> queues{};
  std::array<std::atomic<uint32_t>, kPriorities> next{};
};

// Leaked on purpose: tensors may die after static destructors have run.
std::atomic<State*> g_state{nullptr};
std::mutex g_start;
std::atomic<bool> g_shutting_down{false};
std::atomic<bool> g_bad_fork{false};
thread_local StreamId t_stream = 0;

void rethrow_first(sycl::exception_list errors) {
  for (const std::exception_ptr& error : errors) std::rethrow_exception(error);
}

template <class Param>
int64_t number(const sycl::device& device) {
  try {
    return static_cast<int64_t>(device.get_info<Param>());
  } catch (const sycl::exception&) {
    return 0;
  }
}

DeviceInfo describe(const sycl::device& device) {
  namespace info = sycl::info::device;
  DeviceInfo out;
  out.cpu_name = device.get_info<info::name>();
  out.name = "Virtual XPU (SYCL on " + out.cpu_name + ")";
  out.platform_name = device.get_platform().get_info<sycl::info::platform::name>();
  out.vendor = device.get_info<info::vendor>();
  out.driver_version = device.get_info<info::driver_version>();
  out.version = device.get_info<info::version>();
  out.device_id = 0;
  out.max_compute_units = number<info::max_compute_units>(device);
  out.max_work_group_size = number<info::max_work_group_size>(device);
  out.max_num_sub_groups = number<info::max_num_sub_groups>(device);
  out.local_mem_size = number<info::local_mem_size>(device);
  out.last_level_cache_size = number<info::global_mem_cache_size>(device);
  out.total_memory = number<info::global_mem_size>(device);
  for (size_t size : device.get_info<info::sub_group_sizes>()) out.sub_group_sizes.push_back(size);
  out.has_fp16 = device.has(sycl::aspect::fp16);
  out.has_fp64 = device.has(sycl::aspect::fp64);
  out.has_atomic64 = device.has(sycl::aspect::atomic64);
  return out;
}

sycl::device find_device() {
  try {
    for (const sycl::platform& platform : sycl::platform::get_platforms()) {
      if (platform.get_backend() != sycl::backend::opencl) continue;
      for (const sycl::device& device : platform.get_devices(sycl::info::device_type::cpu)) {
        if (device.has(sycl::aspect::usm_device_allocations)) return device;
      }
    }
  } catch (const sycl::exception&) {
    // SYCL says in its own words that it has found no platform at all.
  }
  throw std::runtime_error(
      "the virtual XPU needs an OpenCL CPU device that SYCL can see and found none: `pip install intel-opencl-rt`, and "
      "check OCL_ICD_FILENAMES and ONEAPI_DEVICE_SELECTOR if you have set them");
}

State& state() {
  if (g_bad_fork.load(std::memory_order_relaxed)) {
    throw std::runtime_error(
        "Cannot re-initialize XPU in forked subprocess. To use XPU with multiprocessing, you must use the 'spawn' "
        "start method");
  }
  State* s = g_state.load(std::memory_order_acquire);
  if (s == nullptr) {
    start();
    s = g_state.load(std::memory_order_acquire);
  }
  return *s;
}

sycl::queue& queue(StreamId stream) {
  if (stream >= kExternalStreams) return *reinterpret_cast<sycl::queue*>(stream);
  if (stream < 0 || stream >= kOwnStreams) throw std::out_of_range("not a stream of the virtual XPU");
  State& s = state();
  sycl::queue* found = s.queues[stream].load(std::memory_order_acquire);
  if (found == nullptr) {
    std::lock_guard<std::mutex> lock(s.mutex);
    found = s.queues[stream].load(std::memory_order_acquire);
    if (found == nullptr) {
      found = new sycl::queue(s.context, s.device, rethrow_first, {sycl::property::queue::in_order()});
      s.queues[stream].store(found, std::memory_order_release);
    }
  }
  return *found;
}

struct Event {
  sycl::event event;  // first, so that the handle is a sycl::event*
  bool timing = false;
  std::chrono::steady_clock::time_point time;
};

}  // namespace

void start() {
  std::lock_guard<std::mutex> lock(g_start);
  if (g_state.load(std::memory_order_acquire) != nullptr) return;
  const sycl::device device = find_device();
  auto s = std::make_unique<State>(device, describe(device));
  pthread_atfork(nullptr, nullptr, [] { g_bad_fork.store(true); });
  g_state.store(s.release(), std::memory_order_release);
}

bool started() noexcept { return g_state.load(std::memory_order_acquire) != nullptr; }
bool in_bad_fork() noexcept { return g_bad_fork.load(std::memory_order_relaxed); }
bool shutting_down() noexcept { return g_shutting_down.load(std::memory_order_relaxed); }

void shut_down() noexcept {
  if (g_shutting_down.exchange(true) || !started() || in_bad_fork()) return;
  try {
    wait_all();
  } catch (...) {
    // Nobody is left to tell.
  }
}

const DeviceInfo& device_info() { return state().info; }

StreamId new_stream(int64_t priority) {
  const StreamId level = priority < 0 ? 0 : (priority == 0 ? 1 : 2);
  const StreamId slot = state().next[level].fetch_add(1) % kPoolSize;
  return 1 + level * kPoolSize + slot;
}

StreamId stream_of_queue(void* queue) {
  const auto id = reinterpret_cast<StreamId>(queue);
  if (id < kExternalStreams) throw std::invalid_argument("not the address of a sycl::queue");
  State& s = state();
  for (StreamId own = 0; own < kOwnStreams; ++own) {
    if (s.queues[own].load(std::memory_order_acquire) == queue) return own;
  }
  return id;
}

int64_t stream_priority(StreamId stream) noexcept {
  return stream <= 0 || stream >= kOwnStreams ? 0 : (stream - 1) / kPoolSize - 1;
}

void* stream_queue(StreamId stream) { return &queue(stream); }
StreamId current_stream() noexcept { return t_stream; }

StreamId exchange_stream(StreamId stream) {
  const StreamId before = t_stream;
  t_stream = stream;
  return before;
}

void wait_stream(StreamId stream) { queue(stream).wait_and_throw(); }

void wait_all() {
  State& s = state();
  for (auto& entry : s.queues) {
    if (sycl::queue* q = entry.load(std::memory_order_acquire)) q->wait_and_throw();
  }
}

bool stream_done(StreamId stream) { return queue(stream).ext_oneapi_empty(); }

void* device_alloc(size_t bytes) noexcept {
  try {
    State& s = state();
    return sycl::aligned_alloc_device(bytes < 4096 ? 64 : 4096, bytes, s.device, s.context);
  } catch (...) {
    return nullptr;
  }
}

void device_free(void* pointer) noexcept {
  if (shutting_down() || in_bad_fork()) return;
  try {
    sycl::free(pointer, state().context);
  } catch (...) {
    // The memory is lost, which is better than a throwing deleter.
  }
}

void* pinned_alloc(size_t bytes) noexcept {
  try {
    return sycl::aligned_alloc_host(64, bytes, state().context);
  } catch (...) {
    return nullptr;
  }
}

void pinned_free(void* pointer) noexcept { device_free(pointer); }

bool is_pinned(const void* pointer) noexcept {
  if (pointer == nullptr || !started() || in_bad_fork() || shutting_down()) return false;
  try {
    return sycl::get_pointer_type(pointer, state().context) == sycl::usm::alloc::host;
  } catch (...) {
    return false;
  }
}

void event_record(void** event, StreamId stream, bool timing) {
  if (*event == nullptr) *event = new Event();
  auto* e = static_cast<Event*>(*event);
  sycl::queue& q = queue(stream);
  e->event = q.ext_oneapi_submit_barrier();
  e->timing = timing;
  if (timing) {
    // Waiting makes the host clock the time at which all earlier work was done, without a profiling queue.
    q.wait_and_throw();
    e->time = std::chrono::steady_clock::now();
  }
}

void event_block(void* event, StreamId stream) {
  if (event != nullptr) queue(stream).ext_oneapi_submit_barrier({static_cast<Event*>(event)->event});
}

bool event_done(void* event) {
  if (event == nullptr) return true;
  const auto status = static_cast<Event*>(event)->event.get_info<sycl::info::event::command_execution_status>();
  return status == sycl::info::event_command_status::complete;
}

void event_wait(void* event) {
  if (event != nullptr) static_cast<Event*>(event)->event.wait_and_throw();
}

void event_destroy(void* event) noexcept {
  if (!shutting_down() && !in_bad_fork()) delete static_cast<Event*>(event);
}

double event_elapsed_ms(void* begin, void* end) {
  const auto* a = static_cast<const Event*>(begin);
  const auto* b = static_cast<const Event*>(end);
  if (a == nullptr || b == nullptr || !a->timing || !b->timing) {
    throw std::runtime_error("Both events must be created with argument 'enable_timing=True' and recorded.");
  }
  return std::chrono::duration<double, std::milli>(b->time - a->time).count();
}

}  // namespace vxpu
