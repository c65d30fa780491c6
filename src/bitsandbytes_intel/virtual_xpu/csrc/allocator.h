// The caching allocator of the virtual XPU, and the loan of its memory to CPU kernels.
#pragma once

#include <c10/core/CachingDeviceAllocator.h>

namespace vxpu {

inline const c10::Device kDevice(c10::DeviceType::XPU, 0);

// Tells torch of the device's allocator, and puts the lending one before its CPU allocator.
void register_allocators();

c10::DeviceAllocator* allocator() noexcept;
// Host memory that pin_memory() asks for.
c10::Allocator* pinned_allocator() noexcept;

// Waits until the current stream has done its work, so that the host may touch its memory.
void drain_current_stream();

// While one lives, CPU tensors that this thread allocates get device memory: a result of a borrowed CPU kernel then
// becomes an XPU tensor without a copy.
class LoanScope {
 public:
  LoanScope() noexcept;
  ~LoanScope();
  LoanScope(const LoanScope&) = delete;
  LoanScope& operator=(const LoanScope&) = delete;

 private:
  bool before_;
};

// Turns a CPU DataPtr into one of the XPU: the same memory if it is on loan and `may_move`, else a copy of it.
c10::DataPtr claim(c10::DataPtr&& pointer, size_t bytes, bool may_move);

struct MemoryUse {
  size_t free = 0, total = 0;
};
MemoryUse memory_use();
void set_memory_fraction(double fraction);
double memory_fraction() noexcept;

}  // namespace vxpu
