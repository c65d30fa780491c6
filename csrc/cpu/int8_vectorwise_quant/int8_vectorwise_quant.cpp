#include "int8_vectorwise_quant.h"

#include "../../reciprocal.h"

namespace bnb::cpu {

constinit Slot<VectorQuantKernels> int8_vectorwise_quant{"int8_vectorwise_quant"};

namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;

int64_t grain_of(int64_t cols) { return std::max<int64_t>(1, kGrain / cols); }

// What a threshold means for elements of a dtype.
float rounded(int dtype, float threshold) {
  return with_dtype(dtype, [&](auto zero) { return to_float(from_float<decltype(zero)>(threshold)); });
}

}  // namespace

float scale_of_row(float top) { return fast_reciprocal(top) * 127.0f; }

}  // namespace bnb::cpu

int cint8_vector_quant(int dtype, const void* A, int8_t* out, float* row_stats, uint8_t* outliers, float threshold, int64_t rows,
                       int64_t cols, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (rows <= 0 || cols <= 0) return;
    const VectorQuant call{dtype, A, out, row_stats, outliers, rounded(dtype, threshold), rows, cols};
    const auto run = int8_vectorwise_quant.best().rows;
    parallel_for(queue, rows, grain_of(cols), [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}

int cint8_zero_columns(int8_t* out, const int64_t* columns, int64_t n, int64_t rows, int64_t cols, void* queue, char* message,
                       size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (rows <= 0 || n <= 0) return;
    parallel_for(queue, rows, grain_of(n), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++)
        for (int64_t i = 0; i < n; i++) out[r * cols + columns[i]] = 0;
    });
  });
}

int cint8_column_quant(int dtype, const void* A, int8_t* out, float* col_stats, float* scratch, float threshold, int64_t rows,
                       int64_t cols, int64_t height, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (rows <= 0 || cols <= 0) return;
    const float limit = rounded(dtype, threshold);
    const float rounded_away = threshold > 0 && limit == 0 ? 1.2e-38f : limit;  // still a threshold
    const VectorQuant call{dtype, A, out, col_stats, nullptr, rounded_away, rows, cols};
    const VectorQuantKernels kernels = int8_vectorwise_quant.best();
    const int64_t parts = ceil_div(rows, height);
    float* const tops = parts > 1 ? scratch : col_stats;
    parallel_for(queue, parts, std::max<int64_t>(1, grain_of(cols) / height), [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; part++)
        kernels.maxima(call, part * height, std::min(rows, (part + 1) * height), tops + part * cols);
    });
    if (parts > 1) {
      const VectorQuant of_parts{BNB_FLOAT32, scratch, nullptr, nullptr, nullptr, 0.0f, parts, cols};
      kernels.maxima(of_parts, 0, parts, col_stats);
    }
    parallel_for(queue, rows, grain_of(cols), [&](int64_t first, int64_t last) { kernels.columns(call, first, last); });
  });
}
