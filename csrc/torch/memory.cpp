#include "memory.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "common.h"

namespace bnb {
namespace {

constexpr size_t kPage = 4 << 10, kHugePage = 2 << 20;
// What a last huge page may add to a result, unused, is its bytes over this: a model holds its weights for good.
constexpr size_t kWaste = 32;
// What is kept at most: results that are freed come back as arguments of the same layers, a few at a time.
constexpr size_t kKept = 512 << 20, kKeptBlocks = 8;

struct Block {
  void* memory;
  size_t bytes;
};

class Pool {
 public:
  // Never waits: where another thread is at it, or was when this process was forked off, the system serves.
  void* take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    // The newest first: its pages are the likeliest to be there still.
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), [&](const Block& block) { return block.bytes == bytes; });
    if (found == kept_.rend()) return nullptr;
    void* const memory = found->memory;
    kept_.erase(std::next(found).base());
    return memory;
  }

  void give(Block block) {
    std::vector<Block> dropped{block};
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (lock && block.bytes <= kKept && madvise(block.memory, block.bytes, MADV_FREE) == 0) {
        kept_.push_back(block);
        dropped.clear();
        size_t total = 0;
        for (const Block& each : kept_) total += each.bytes;
        while (total > kKept || kept_.size() > kKeptBlocks) {
          total -= kept_.front().bytes;
          dropped.push_back(kept_.front());
          kept_.erase(kept_.begin());
        }
      }
    }
    for (const Block& each : dropped) munmap(each.memory, each.bytes);
  }

 private:
  std::mutex mutex_;
  std::vector<Block> kept_;  // the oldest first
};

Pool& pool() {
  static Pool* const pool = new Pool;  // never destroyed: tensors may live longer than statics
  return *pool;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) & ~(unit - 1); }

// What is mapped for a result: whole huge pages, or what does not fill the last one in small pages.
size_t mapped_bytes(size_t bytes) {
  const size_t huge = round_up(bytes, kHugePage);
  return huge - bytes <= bytes / kWaste ? huge : round_up(bytes, kPage);
}

// Mapped at a multiple of the huge page, so that the system can use huge pages from the first byte on.
void* map(size_t bytes) {
  const size_t wanted = bytes + kHugePage;
  void* const mapped = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  char* const memory = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(begin), kHugePage));
  if (memory > begin) munmap(begin, static_cast<size_t>(memory - begin));
  char* const end = begin + wanted;
  if (end > memory + bytes) munmap(memory + bytes, static_cast<size_t>(end - (memory + bytes)));
  madvise(memory, bytes & ~(kHugePage - 1), MADV_HUGEPAGE);  // advice: may be refused
  return memory;
}

using FromBlob = AOTITorchError (*)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t,
                                    AtenTensorHandle*, int32_t, const uint8_t*, int64_t, void (*)(void*, void*), void*);

}  // namespace

std::optional<Tensor> large_result(const int64_t* sizes, const int64_t* strides, int64_t dims, int64_t bytes, int32_t dtype) {
  static const auto from_blob = reinterpret_cast<FromBlob>(dlsym(RTLD_DEFAULT, "torch_from_blob"));
  if (!from_blob) return std::nullopt;
  const size_t mapped = mapped_bytes(static_cast<size_t>(bytes));
  void* memory = pool().take(mapped);
  if (!memory) memory = map(mapped);
  if (!memory) return std::nullopt;  // torch's allocator will say it in its words
  AtenTensorHandle handle;
  const auto status = from_blob(
      memory, dims, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), -1, &handle, aoti_torch_layout_strided(), nullptr, 0,
      [](void* block, void* size) { pool().give({block, reinterpret_cast<size_t>(size)}); }, reinterpret_cast<void*>(mapped));
  if (status) pool().give({memory, mapped});
  STABLE_TORCH_ERROR_CODE_CHECK(status);
  return Tensor(handle);
}

}  // namespace bnb
