#include "int8_linear_matmul.h"

#include <cstdlib>
#include <limits>
#include <memory>

namespace bnb::cpu {

constinit Slot<ProductKernels> int8_product{"int8_linear_matmul"};

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
struct Memory {
  std::unique_ptr<void, Free> data;
  int64_t bytes = 0;
};

// Multiplications that are worth a thread.
constexpr int64_t kGrain = 1 << 19;
// Rearranged rows of A that are kept at a time: B is rearranged again for more.
constexpr int64_t kRowsBytes = 16 << 20;

void check_memory(bool there) {
  if (!there) throw std::runtime_error("no memory for the operands of a product");
}

void multiply(const Product& p, void* queue) {
  if (p.m <= 0 || p.n <= 0) return;
  const ProductKernels kernels = int8_product.best();
  const int64_t strips = ceil_div(p.n, kernels.columns), words = kernels.words(p);
  const int64_t strip_work = std::max<int64_t>(1, std::min(p.m, kernels.rows) * (p.k + p.n_columns) * kernels.columns);
  std::atomic<bool> has_memory{true};
  if (p.m <= kernels.few) {
    auto* const packed = static_cast<int32_t*>(thread_memory(Use::rows, p.m * (words + 16) * 4));
    check_memory(packed);
    kernels.pack_few(p, packed);
    parallel_for(queue, strips, std::max<int64_t>(1, kGrain / strip_work), [&](int64_t first, int64_t last) {
      if (!kernels.run_few(p, packed, first, last)) has_memory = false;
    });
    return check_memory(has_memory);
  }
  const int64_t most = std::max(kernels.rows, kRowsBytes / (4 * words) / kernels.rows * kernels.rows);
  const int64_t chunks = ceil_div(p.m, most), chunk = ceil_div(ceil_div(p.m, chunks), kernels.rows) * kernels.rows;
  for (int64_t first_row = 0; first_row < p.m; first_row += chunk) {
    PackedRows rows{nullptr, first_row, std::min(p.m, first_row + chunk), 0, words};
    const int64_t count = rows.last - rows.first;
    const int64_t even = ceil_div(count, ceil_div(count, kernels.rows));
    rows.height = ceil_div(even, kernels.multiple) * kernels.multiple;
    const int64_t blocks = rows.blocks();
    rows.data = static_cast<int32_t*>(thread_memory(Use::rows, blocks * rows.height * words * 4));
    check_memory(rows.data);
    parallel_for(queue, blocks, std::max<int64_t>(1, (1 << 16) / (rows.height * words)),
                 [&](int64_t first, int64_t last) { kernels.pack(p, rows, first, last); });
    // Where there are few strips, the blocks are divided too.
    const int64_t threads = thread_count(queue);
    const int64_t parts = std::min(blocks, strips >= threads ? 1 : ceil_div(2 * threads, strips));
    const int64_t work = std::max<int64_t>(1, ceil_div(blocks, parts) * strip_work);
    parallel_for(queue, parts * strips, std::max<int64_t>(1, kGrain / work), [&](int64_t first, int64_t last) {
      while (first < last) {
        const int64_t part = first / strips, strip = first - part * strips, end = std::min(strips, strip + last - first);
        if (!kernels.run(p, rows, blocks * part / parts, blocks * (part + 1) / parts, strip, end)) has_memory = false;
        first += end - strip;
      }
    });
    check_memory(has_memory);
  }
}

}  // namespace

void* thread_memory(Use use, int64_t bytes) {
  thread_local Memory all[2];
  Memory& memory = all[static_cast<int>(use)];
  if (memory.bytes < bytes) {
    memory.data.reset();
    memory.bytes = 0;
    const int64_t rounded = (bytes + (1 << 16) - 1) & ~int64_t{(1 << 16) - 1};
    memory.data.reset(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    if (!memory.data) return nullptr;
    memory.bytes = rounded;
  }
  return memory.data.get();
}

}  // namespace bnb::cpu

int64_t cint8_few_rows(void*) { return std::numeric_limits<int64_t>::max(); }

int cint8_linear_matmul(const int8_t* A, const int8_t* B, int32_t* out, int64_t m, int64_t n, int64_t k, void* queue, char* message,
                        size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    Product p{};
    p.A = A, p.B = B, p.m = m, p.n = n, p.k = k, p.sums = out;
    multiply(p, queue);
  });
}

int cint8_scaled_mm(int dtype, const int8_t* A, const int8_t* B, const float* row_stats, const float* col_stats, void* out,
                    const void* bias, int bias_dtype, const void* outliers, const int64_t* columns, int64_t n_columns, int64_t m,
                    int64_t n, int64_t k, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    with_dtype(dtype, [](auto) {});
    if (bias) with_dtype(bias_dtype, [](auto) {});
    expect_writes(out, m * n * size_of(dtype));
    multiply({A, B, m, n, k, nullptr, dtype, out, row_stats, col_stats, bias, bias_dtype, outliers, columns, n_columns}, queue);
  });
}
