// The SYCL side of the virtual XPU: device, queues, memory and events. This header knows neither SYCL nor torch, so
// that no file has to include both. Every function may throw std::exception unless it is noexcept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vxpu {

using StreamId = int64_t;  // 0: the default stream; below kExternalStreams: one of ours; else a foreign sycl::queue*
constexpr StreamId kExternalStreams = 1024;

struct DeviceInfo {
  std::string name, cpu_name, platform_name, vendor, driver_version, version, uuid;
  int64_t device_id = 0, max_compute_units = 0, max_work_group_size = 0, max_num_sub_groups = 0;
  int64_t memory_clock_rate = 0, memory_bus_width = 0, local_mem_size = 0, last_level_cache_size = 0;
  int64_t total_memory = 0;
  std::vector<int64_t> sub_group_sizes;
  bool has_fp16 = false, has_fp64 = false, has_atomic64 = false;
};

// Finds the OpenCL CPU device; done once, by the first caller.
void start();
bool started() noexcept;
// True in a process forked from one that had started: SYCL does not survive a fork.
bool in_bad_fork() noexcept;
// From here on nothing is freed and no queue is touched any more: the process is about to end.
void shut_down() noexcept;
bool shutting_down() noexcept;
const DeviceInfo& device_info();

// Streams: real in-order queues, taken round robin from a pool, as torch does it.
StreamId new_stream(int64_t priority);
StreamId stream_of_queue(void* queue);
int64_t stream_priority(StreamId stream) noexcept;
void* stream_queue(StreamId stream);
StreamId current_stream() noexcept;
StreamId exchange_stream(StreamId stream);
void wait_stream(StreamId stream);
void wait_all();
bool stream_done(StreamId stream);

// Memory that both kernels and the host can reach.
void* device_alloc(size_t bytes) noexcept;
void device_free(void* pointer) noexcept;
void* pinned_alloc(size_t bytes) noexcept;
void pinned_free(void* pointer) noexcept;
bool is_pinned(const void* pointer) noexcept;

// Events. The handle is a sycl::event* too.
void event_record(void** event, StreamId stream, bool timing);
void event_block(void* event, StreamId stream);
bool event_done(void* event);
void event_wait(void* event);
void event_destroy(void* event) noexcept;
double event_elapsed_ms(void* begin, void* end);

}  // namespace vxpu
