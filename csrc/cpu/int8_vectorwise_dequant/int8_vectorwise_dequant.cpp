#include "int8_vectorwise_dequant.h"

namespace bnb::cpu {

constinit Slot<VectorDequantRows> int8_vectorwise_dequant{"int8_vectorwise_dequant"};
// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;

}  // namespace bnb::cpu

int cint8_vector_dequant(int dtype, const int8_t* A, const float* stats, void* out, int64_t stride, int64_t rows, int64_t cols,
                         void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (rows <= 0 || cols <= 0) return;
    with_dtype(dtype, [](auto) {});
    const VectorDequant call{dtype, A, stats, out, stride, cols};
    expect_writes(out, rows * cols * size_of(dtype));
    const auto run = int8_vectorwise_dequant.best();
    parallel_for(queue, rows, std::max<int64_t>(1, kGrain / cols), [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}
