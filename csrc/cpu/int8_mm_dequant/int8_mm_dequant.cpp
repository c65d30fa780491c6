#include "int8_mm_dequant.h"

namespace bnb::cpu {

constinit Slot<MmDequantRows> int8_mm_dequant{"int8_mm_dequant"};
// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;

}  // namespace bnb::cpu

int cdequant_mm_int32(int dtype, const int32_t* A, const float* row_stats, const float* col_stats, void* out, const void* bias,
                      int bias_dtype, const void* addend, int64_t rows, int64_t cols, void* queue, char* message,
                      size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (rows <= 0 || cols <= 0) return;
    with_dtype(dtype, [](auto) {});
    if (bias) with_dtype(bias_dtype, [](auto) {});
    const MmDequant call{dtype, A, row_stats, col_stats, out, bias, bias_dtype, addend, cols};
    expect_writes(out, rows * cols * size_of(dtype));
    const auto run = int8_mm_dequant.best();
    parallel_for(queue, rows, std::max<int64_t>(1, kGrain / cols), [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}
