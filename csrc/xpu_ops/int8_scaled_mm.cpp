// Launch of csrc/xpu_kernels/int8_scaled_mm.cpp: for CPU devices. On GPUs torch's own products are the best there is.
#include "runtime.h"

namespace bnb {
namespace {

// Up to so many rows of A the kernel is faster than torch's product, measured on two cores of Zen 4. With AMX, which torch's has
// and this has not, no more than 8 were measured.
int64_t few_rows() { return __builtin_cpu_supports("amx-int8") ? 8 : cpu_has_vnni() ? 64 : 16; }

// Rows of B of a work-item, and those at a time; rows of A, and vectors along k, at a time. One row of A: memory is the limit, and
// serves one stream better than several.
struct Shape {
  int group_rows, rows, tile_m, steps;
};
constexpr Shape shape_of(bool one_row) { return one_row ? Shape{64, 1, 1, 4} : Shape{32, 4, 4, 1}; }
constexpr int kOutlierRows = 64, kOutlierTile = 64, kOutlierChunk = 32;

bool is_cpu(const sycl::queue& queue) { return device_of(queue).kind == Kind::cpu; }
void expect_cpu(const sycl::queue& queue) {
  if (!is_cpu(queue)) throw std::invalid_argument("GPUs have no kernel for products of int8");
}

template <class T>
const Kernel& kernel(bool one_row) {
  static const KernelTable table([](Kind k, int one) {
    if (k != Kind::cpu) return KernelName{};
    const bool exact = std::is_same_v<T, int32_t>;
    const Shape s = shape_of(one);
    return KernelName{
        exact ? std::string("int8_linear_matmul") : std::string("int8_scaled_mm/") + short_name<T>,
        instantiation("bnb::kInt8ScaledMM", exact ? "bnb::i32" : type_name<T>,
                      cpu_has_vnni() ? "bnb::VnniProducts" : "bnb::PlainProducts", s.group_rows, s.rows, s.tile_m, s.steps)};
  }, "int8_scaled_mm", 2);
  return table.at(Kind::cpu, one_row);
}

template <class T>
const Kernel& outlier_kernel() {
  static const KernelTable table([](Kind k, int) {
    if (k != Kind::cpu) return KernelName{};
    return KernelName{std::string("int8_outlier_product/") + short_name<T>,
                      instantiation("bnb::kInt8OutlierProduct", type_name<T>, kOutlierTile, kOutlierChunk, sub_group_size(k))};
  }, "int8_scaled_mm", 1);
  return table.at(Kind::cpu, 0);
}

}  // namespace

// out = A[m, k] B[n, k]^T, exact for T = int32_t, else scaled, with outliers. Asynchronous.
template <class T>
void int8ScaledMM(const int8_t* A, const int8_t* B, const float* rowStats, const float* colStats, T* out, const void* bias,
                  int bias_dtype, const T* outliers, const int64_t* columns, int64_t n_columns, int64_t m, int64_t n, int64_t k,
                  sycl::queue* queue) {
  expect_cpu(*queue);
  if (m <= 0 || n <= 0) return;
  const int64_t group_rows = shape_of(m == 1).group_rows;
  kernel<T>(m == 1).submit(*queue, (n + group_rows - 1) / group_rows, 1, A, B, rowStats, colStats, out, bias,
                           static_cast<int32_t>(bias ? bias_dtype : -1), outliers, columns, n_columns, m, n, k);
}

// out[m, n] = outliers[m, n_columns] times columns of B, scaled back. Asynchronous.
template <class T>
void int8OutlierProduct(const T* outliers, const int8_t* B, const int64_t* columns, const float* colStats, T* out,
                        int64_t n_columns, int64_t m, int64_t n, int64_t k, sycl::queue* queue) {
  expect_cpu(*queue);
  if (m <= 0 || n <= 0 || n_columns <= 0) return;
  const int64_t groups = (n + kOutlierRows - 1) / kOutlierRows * ((m + kOutlierTile - 1) / kOutlierTile);
  outlier_kernel<T>().submit(*queue, groups, sub_group_size(Kind::cpu), outliers, B, columns, colStats, out, n_columns, m, n, k);
}

template <class T>
static void register_kernels() {
  kernel<T>(false);
  outlier_kernel<T>();
}
static const bool registered =
    (kernel<int32_t>(false), register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int64_t cint8_few_rows(void* queue) { return bnb::is_cpu(*static_cast<sycl::queue*>(queue)) ? bnb::few_rows() : 0; }

int cint8_linear_matmul(const int8_t* A, const int8_t* B, int32_t* out, int64_t m, int64_t n, int64_t k, void* queue, char* message,
                        size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::int8ScaledMM<int32_t>(A, B, nullptr, nullptr, out, nullptr, -1, nullptr, nullptr, 0, m, n, k,
                               static_cast<sycl::queue*>(queue));
  });
}

int cint8_scaled_mm(int dtype, const int8_t* A, const int8_t* B, const float* row_stats, const float* col_stats, void* out,
                    const void* bias, int bias_dtype, const void* outliers, const int64_t* columns, int64_t n_columns, int64_t m,
                    int64_t n, int64_t k, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::int8ScaledMM(A, B, row_stats, col_stats, static_cast<T*>(out), bias, bias_dtype, static_cast<const T*>(outliers),
                        columns, n_columns, m, n, k, static_cast<sycl::queue*>(queue));
    });
  });
}

int cint8_outlier_product(int dtype, const void* outliers, const int8_t* B, const int64_t* columns, int64_t n_columns,
                          const float* col_stats, void* out, int64_t m, int64_t n, int64_t k, void* queue, char* message,
                          size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::int8OutlierProduct(static_cast<const T*>(outliers), B, columns, col_stats, static_cast<T*>(out), n_columns, m, n, k,
                              static_cast<sycl::queue*>(queue));
    });
  });
}
