// Memory that host and device share (USM): what paged optimizers keep their states in.
#include "runtime.h"

int cis_shared(const void* pointer, int* shared, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    const auto type = sycl::get_pointer_type(pointer, static_cast<sycl::queue*>(queue)->get_context());
    *shared = type == sycl::usm::alloc::shared || type == sycl::usm::alloc::host;
  });
}

void* bnb_xpu_malloc_shared(size_t bytes, void* queue, char* message, size_t message_size) {
  void* pointer = nullptr;
  bnb::guarded(message, message_size, [&] {
    pointer = sycl::malloc_shared(bytes, *static_cast<sycl::queue*>(queue));
    if (!pointer) throw std::runtime_error("no " + std::to_string(bytes) + " bytes of shared memory");
  });
  return pointer;
}

int bnb_xpu_prefetch(const void* pointer, size_t bytes, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] { static_cast<sycl::queue*>(queue)->prefetch(pointer, bytes); });
}

int bnb_xpu_fill(void* pointer, uint32_t value, size_t item_size, size_t count, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    auto& q = *static_cast<sycl::queue*>(queue);
    if (item_size == 4)
      q.fill(static_cast<uint32_t*>(pointer), value, count);
    else if (item_size == 1)
      q.memset(pointer, static_cast<int>(value & 255), count);
    else
      throw std::invalid_argument("items of " + std::to_string(item_size) + " bytes, not 1 or 4");
  });
}
