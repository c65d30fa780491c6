#include "dequantize_blockwise.h"

namespace bnb::cpu {

constinit Slot<DequantizeBlocks> dequantize_4bit{"dequantize_4bit"}, dequantize_8bit{"dequantize_blockwise"};

// Outputs of so many bytes are not kept in the caches.
constexpr int64_t kStreamBytes = 8 << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;

}  // namespace bnb::cpu

int cdequantize_blockwise(int dtype, int data_type, const float* code, const uint8_t* A, const float* absmax, void* out,
                          int64_t blocksize, int64_t n, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    const bool is_4bit = data_type != BNB_GENERAL8BIT;
    const int64_t bytes = n * size_of(dtype);
    const bool stream = bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(out) % 64 == 0;
    alignas(64) float table[256];  // aligned for look-ups in registers
    if (!is_4bit) std::copy_n(code, 256, table);
    const Dequantize call{dtype, data_type, is_4bit ? table_of(data_type) : table, A, absmax, out, blocksize, n, stream};
    expect_writes(out, bytes);
    const auto run = (is_4bit ? dequantize_4bit : dequantize_8bit).best();
    parallel_for(queue, ceil_div(n, blocksize), std::max<int64_t>(1, kGrain / blocksize),
                 [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}
