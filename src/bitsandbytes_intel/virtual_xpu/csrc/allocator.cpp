#include "allocator.h"

#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "queues.h"

namespace vxpu {
namespace {

namespace stats = c10::CachingAllocator;

constexpr size_t kSmallest = 512;
constexpr size_t kSmall = 1 << 20;  // the border between torch's small and large pool
constexpr size_t kCarved = 64 << 10;  // blocks up to here are cut from chunks
constexpr size_t kChunk = 2 << 20;

thread_local bool t_loan = false;
thread_local uint64_t t_drained = 0;  // frees up to this number are over for the host, on stream t_drained_stream
thread_local StreamId t_drained_stream = -1;
std::atomic<uint64_t> g_frees{1};

// Eight sizes to each power of two: at most an eighth is wasted, and freed blocks fit again.
size_t size_class(size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  const size_t step = std::max(kSmallest, std::bit_floor(bytes - 1) / 8);
  return (bytes + step - 1) / step * step;
}

struct Block {
  size_t size = 0, requested = 0;
  StreamId stream = 0;
  bool carved = false;
  uint64_t freed_at = 0;
  std::vector<StreamId> used_by;  // other streams, told by record_stream()
};

struct Free {
  void* pointer;
  uint64_t freed_at;
  bool carved;
};

struct PoolKey {
  StreamId stream;
  size_t size;
  bool operator==(const PoolKey&) const = default;
};
struct PoolHash {
  size_t operator()(const PoolKey& key) const noexcept { return key.size * 31 + static_cast<size_t>(key.stream); }
};

void release(void* pointer);

class Allocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, kDevice};
    void* pointer = take(bytes, /*for_host=*/false);
    return {pointer, pointer, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    drain_current_stream();
    std::memcpy(to, from, bytes);
  }

  bool initialized() override { return started(); }
  void emptyCache(c10::MempoolId_t) override {
    if (!started()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    drop_cache();
  }
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = blocks_.find(data.get());
    if (found == blocks_.end() || found->second.stream == stream.id()) return;
    auto& used_by = found->second.used_by;
    if (std::find(used_by.begin(), used_by.end(), stream.id()) == used_by.end()) used_by.push_back(stream.id());
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto* array : arrays()) {
      for (auto& stat : *array) stat.reset_accumulated();
    }
    stats_.num_alloc_retries = stats_.num_ooms = 0;
  }
  void resetPeakStats(c10::DeviceIndex) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto* array : arrays()) {
      for (auto& stat : *array) stat.reset_peak();
    }
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    const MemoryUse use = memory_use();
    return {use.free, use.total};
  }

  void* take(size_t bytes, bool for_host);
  bool give_back(void* pointer);  // false: not ours
  size_t cached() {
    std::lock_guard<std::mutex> lock(mutex_);
    return cached_;
  }
  std::atomic<double> fraction{1.0};

 private:
  std::array<stats::StatArray*, 7> arrays() {
    return {&stats_.allocation,     &stats_.segment,      &stats_.active,         &stats_.allocated_bytes,
            &stats_.reserved_bytes, &stats_.active_bytes, &stats_.requested_bytes};
  }
  static void count(stats::StatArray& array, size_t size, size_t amount, bool up) {
    for (auto type : {stats::StatType::AGGREGATE, size < kSmall ? stats::StatType::SMALL_POOL : stats::StatType::LARGE_POOL}) {
      auto& stat = array[static_cast<size_t>(type)];
      up ? stat.increase(amount) : stat.decrease(amount);
    }
  }
  void count_block(const Block& block, bool up) {
    count(stats_.allocation, block.size, 1, up);
    count(stats_.active, block.size, 1, up);
    count(stats_.allocated_bytes, block.size, block.size, up);
    count(stats_.active_bytes, block.size, block.size, up);
    count(stats_.requested_bytes, block.size, block.requested, up);
  }
  void count_segment(size_t size, size_t bytes, bool up) {
    count(stats_.segment, size, 1, up);
    count(stats_.reserved_bytes, size, bytes, up);
    up ? ++stats_.num_device_alloc : ++stats_.num_device_free;
  }
  void drop_cache();
  Free fresh(size_t size);

  std::mutex mutex_;
  std::unordered_map<void*, Block> blocks_;
  std::unordered_map<PoolKey, std::vector<Free>, PoolHash> pools_;
  size_t cached_ = 0;  // bytes in pools_ that drop_cache() could free
  size_t reserved_ = 0;
  c10::CachingDeviceAllocator::DeviceStats stats_;
};

// Leaked on purpose: tensors may die after static destructors have run.
Allocator& device_allocator() {
  static auto* instance = new Allocator();
  return *instance;
}

void release(void* pointer) {
  if (pointer != nullptr) device_allocator().give_back(pointer);
}

void Allocator::drop_cache() {
  wait_all();  // a cached block may be the operand of a kernel that has not ended
  for (auto& [key, pool] : pools_) {
    auto carved = std::partition(pool.begin(), pool.end(), [](const Free& block) { return block.carved; });
    for (auto it = carved; it != pool.end(); ++it) {
      device_free(it->pointer);
      cached_ -= key.size;
      reserved_ -= key.size;
      count_segment(key.size, key.size, false);
    }
    pool.erase(carved, pool.end());
  }
}

Free Allocator::fresh(size_t size) {
  const size_t limit = static_cast<size_t>(static_cast<double>(device_info().total_memory) * fraction.load());
  const bool carved = size <= kCarved;
  const size_t wanted = carved ? kChunk : size;
  // The memory is the host's own, so that the cache must not grow without bound either.
  if (reserved_ + wanted > limit || cached_ > limit / 4) drop_cache();
  void* pointer = reserved_ + wanted > limit ? nullptr : device_alloc(wanted);
  if (pointer == nullptr && cached_ != 0) {
    ++stats_.num_alloc_retries;
    drop_cache();
    pointer = device_alloc(wanted);
  }
  if (pointer == nullptr) {
    ++stats_.num_ooms;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "XPU out of memory. Tried to allocate ", size, " bytes; ", reserved_, " of the ",
                     limit, " bytes that the virtual XPU may use are reserved.");
  }
  reserved_ += wanted;
  count_segment(size, wanted, true);
  return {pointer, 0, carved};
}

void* Allocator::take(size_t bytes, bool for_host) {
  TORCH_CHECK_WITH(OutOfMemoryError, bytes <= static_cast<size_t>(std::numeric_limits<int64_t>::max()) / 2,
                   "XPU out of memory. Tried to allocate ", bytes, " bytes.");
  start();
  Block block;
  block.size = size_class(bytes);
  block.requested = bytes;
  block.stream = current_stream();
  Free found;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& pool = pools_[{block.stream, block.size}];
    if (pool.empty()) {
      found = fresh(block.size);
      if (found.carved) {
        for (size_t at = block.size; at + block.size <= kChunk; at += block.size) {
          pool.push_back({static_cast<char*>(found.pointer) + at, 0, true});
        }
      }
    } else {
      found = pool.back();
      pool.pop_back();
      if (!found.carved) cached_ -= block.size;
    }
    block.carved = found.carved;
    count_block(block, true);
    blocks_.emplace(found.pointer, std::move(block));
  }
  // The stream keeps the order for kernels, but the host must wait for those submitted before the block was freed.
  if (for_host && (t_drained_stream != current_stream() || found.freed_at > t_drained)) drain_current_stream();
  return found.pointer;
}

bool Allocator::give_back(void* pointer) {
  std::vector<StreamId> used_by;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = blocks_.find(pointer);
    if (found == blocks_.end()) return false;
    if (shutting_down() || in_bad_fork()) return true;
    used_by.swap(found->second.used_by);
  }
  for (StreamId stream : used_by) {
    try {
      wait_stream(stream);
    } catch (...) {
      // A failed kernel has been reported where it was launched or waited for.
    }
  }
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = blocks_.find(pointer);
  const Block block = std::move(found->second);
  blocks_.erase(found);
  count_block(block, false);
  pools_[{block.stream, block.size}].push_back({pointer, g_frees.fetch_add(1) + 1, block.carved});
  if (!block.carved) cached_ += block.size;
  return true;
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* pointer = bytes == 0 ? nullptr : pinned_alloc(bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, bytes == 0 || pointer != nullptr, "cannot allocate ", bytes, " bytes of pinned memory");
    return {pointer, pointer, &free, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static void free(void* pointer) {
    if (pointer != nullptr) pinned_free(pointer);
  }
};

// Stands before torch's CPU allocator, and is it wherever no loan is under way.
class LendingAllocator final : public c10::Allocator {
 public:
  explicit LendingAllocator(c10::Allocator* cpu) : cpu_(cpu) { instance_ = this; }
  c10::DataPtr allocate(size_t bytes) override {
    if (C10_LIKELY(!t_loan) || bytes == 0) return cpu_->allocate(bytes);
    void* pointer = device_allocator().take(bytes, /*for_host=*/true);
    return {pointer, pointer, &release, c10::Device(c10::DeviceType::CPU)};
  }
  bool is_simple_data_ptr(const c10::DataPtr& data) const override { return cpu_->is_simple_data_ptr(data); }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { cpu_->copy_data(to, from, bytes); }

 private:
  static void free(void* pointer) {
    if (pointer == nullptr || device_allocator().give_back(pointer)) return;
    instance_->cpu_->raw_deleter()(pointer);
  }
  static inline LendingAllocator* instance_ = nullptr;
  c10::Allocator* cpu_;
};

}  // namespace

void register_allocators() {
  c10::SetAllocator(c10::DeviceType::XPU, &device_allocator());
  c10::SetAllocator(c10::DeviceType::CPU, new LendingAllocator(c10::GetCPUAllocator()), /*priority=*/1);
}

c10::DeviceAllocator* allocator() noexcept { return &device_allocator(); }

c10::Allocator* pinned_allocator() noexcept {
  static auto* instance = new PinnedAllocator();
  return instance;
}

void drain_current_stream() {
  const StreamId stream = current_stream();
  const uint64_t frees = g_frees.load();
  if (!stream_done(stream)) wait_stream(stream);
  t_drained = frees;
  t_drained_stream = stream;
}

LoanScope::LoanScope() noexcept : before_(t_loan) { t_loan = true; }
LoanScope::~LoanScope() { t_loan = before_; }

c10::DataPtr claim(c10::DataPtr&& pointer, size_t bytes, bool may_move) {
  if (may_move && pointer.get_deleter() == &release && pointer.get() != nullptr) {
    pointer.unsafe_set_device(kDevice);
    return std::move(pointer);
  }
  c10::DataPtr copy = device_allocator().allocate(bytes);
  if (bytes != 0 && pointer.get() != nullptr) {
    drain_current_stream();  // the block may have been freed under a kernel that still runs
    std::memcpy(copy.get(), pointer.get(), bytes);
  }
  return copy;
}

MemoryUse memory_use() {
  MemoryUse use;
  use.total = static_cast<size_t>(device_info().total_memory);
  use.free = use.total;
  std::ifstream meminfo("/proc/meminfo");
  std::string name;
  for (size_t kib = 0; meminfo >> name >> kib; meminfo.ignore(64, '\n')) {
    if (name == "MemAvailable:") {
      use.free = std::min(use.total, kib * 1024 + device_allocator().cached());
      break;
    }
  }
  return use;
}

void set_memory_fraction(double fraction) {
  TORCH_CHECK(fraction > 0 && fraction <= 1, "invalid fraction:", fraction, ". Please set within (0, 1].");
  device_allocator().fraction = fraction;
}

double memory_fraction() noexcept { return device_allocator().fraction; }

}  // namespace vxpu
