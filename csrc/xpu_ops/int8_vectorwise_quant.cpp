// Launch of csrc/xpu_kernels/int8_vectorwise_quant.cpp.
#include "runtime.h"

namespace bnb {
namespace {

constexpr const char* kStem = "int8_vectorwise_quant";

struct RowShape {
  int num_per_th, held, group;
};

// 16 bytes a lane, or an element where columns or pointers do not allow it.
template <class T>
constexpr RowShape row_shape(Kind kind, bool vectorised) {
  if (kind == Kind::cpu) return {8, 0, 64};
  return vectorised ? RowShape{static_cast<int>(16 / sizeof(T)), 4, 256} : RowShape{1, 8, 256};
}

template <class T>
std::string family_of(Kind kind, bool vectorised) {
  return std::string(kStem) + "/" + short_name<T> + (vectorised || kind == Kind::cpu ? "" : "/any");
}

template <class T>
const Kernel& row_kernel(Kind kind, bool vectorised, bool sparse) {
  static const KernelTable table([](Kind k, int path) {
    const RowShape s = row_shape<T>(k, path & 1);
    return KernelName{family_of<T>(k, path & 1), instantiation("bnb::kInt8VectorQuant", type_name<T>, path >> 1, s.num_per_th,
                                                               s.held, s.group, sub_group_size(k))};
  }, kStem, 4);
  return table.at(kind, vectorised + 2 * sparse);
}

constexpr int kZeroGroup = 64;

const Kernel& zero_kernel(Kind kind) {
  static const KernelTable table([](Kind k, int) {
    return KernelName{std::string(kStem) + "/columns", instantiation("bnb::kZeroColumns", kZeroGroup, sub_group_size(k))};
  }, kStem, 1);
  return table.at(kind, 0);
}

struct ColumnShape {
  int shared, num_per_th, steps, group;
};

// On GPUs a work-group shares the rows of a tile of statistics.
template <class T>
constexpr ColumnShape column_shape(Kind kind, bool vectorised, bool quantise) {
  if (kind == Kind::cpu) return {0, 1, 8, 64};
  return {!quantise, vectorised ? static_cast<int>(16 / sizeof(T)) : 1, 1, quantise ? 128 : 256};
}

template <class T>
const Kernel& column_kernel(Kind kind, bool vectorised, bool quantise) {
  static const KernelTable table([](Kind k, int path) {
    const ColumnShape s = column_shape<T>(k, path & 1, path >> 1);
    return KernelName{
        "int8_double_quant" + family_of<T>(k, path & 1).substr(std::string(kStem).size()),
        path >> 1 ? instantiation("bnb::kInt8ColumnQuant", type_name<T>, s.num_per_th, s.steps, s.group, sub_group_size(k))
                  : instantiation("bnb::kColumnStats", type_name<T>, s.shared, s.num_per_th, s.steps, s.group, sub_group_size(k))};
  }, kStem, 4);
  return table.at(kind, vectorised + 2 * quantise);
}

int64_t groups_of(Kind kind, const ColumnShape& s, int64_t rows, int64_t cols, int64_t height) {
  const int64_t width = static_cast<int64_t>(s.num_per_th) * s.steps * sub_group_size(kind);
  const int64_t tiles = (cols + width - 1) / width * ((rows + height - 1) / height);
  const int64_t sub_groups = s.shared ? 1 : s.group / sub_group_size(kind);
  return (tiles + sub_groups - 1) / sub_groups;
}

// What a threshold means for elements of T.
template <class T>
float rounded(float threshold) {
  return static_cast<float>(static_cast<T>(threshold));
}

}  // namespace

// rowStats[r] = max |A[r, c]|; out = A * 127 / rowStats, rounded. With a threshold > 0, magnitudes from there on count for
// nothing, become 0, and set the byte of their column in `outliers`. Asynchronous.
template <class T>
void int8VectorQuant(const T* A, uint8_t* out, float* rowStats, uint8_t* outliers, float threshold, int64_t rows, int64_t cols,
                     sycl::queue* queue) {
  if (rows <= 0 || cols <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const bool sparse = outliers != nullptr;
  const size_t wide = 16 / sizeof(T);
  const bool vectorised = cols % wide == 0 && aligned(A, 16) && aligned(out, wide);
  const RowShape s = row_shape<T>(kind, vectorised);
  const int64_t rows_a_group = s.held ? 1 : s.group / sub_group_size(kind);
  row_kernel<T>(kind, vectorised, sparse)
      .submit(*queue, (rows + rows_a_group - 1) / rows_a_group, s.group, A, out, rowStats, outliers, rounded<T>(threshold), rows,
              cols);
}

// out[:, columns] = 0.
void zeroColumns(uint8_t* out, const int64_t* columns, int64_t n, int64_t rows, int64_t cols, sycl::queue* queue) {
  if (rows <= 0 || n <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const int64_t rows_a_group = kZeroGroup / sub_group_size(kind);
  zero_kernel(kind).submit(*queue, (rows + rows_a_group - 1) / rows_a_group, kZeroGroup, out, columns, n, rows, cols);
}

template <class T>
void columnStats(const T* A, float* out, float threshold, int64_t rows, int64_t cols, int64_t height, sycl::queue* queue) {
  const Kind kind = device_of(*queue).kind;
  const bool vectorised = cols % (16 / sizeof(T)) == 0 && aligned(A, 16);
  const ColumnShape s = column_shape<T>(kind, vectorised, false);
  column_kernel<T>(kind, vectorised, false)
      .submit(*queue, groups_of(kind, s, rows, cols, height), s.group, A, out, threshold, rows, cols, height);
}

// colStats[c] = max |A[r, c]|, without outliers; `scratch` holds (rows + height - 1) / height rows of fp32, which are the
// maxima of so many rows each. out = A * 127 / colStats, rounded. Asynchronous.
template <class T>
void int8ColumnQuant(const T* A, uint8_t* out, float* colStats, float* scratch, float threshold, int64_t rows, int64_t cols,
                     int64_t height, sycl::queue* queue) {
  if (rows <= 0 || cols <= 0) return;
  const float limit = rounded<T>(threshold);
  const float rounded_away = threshold > 0 && limit == 0 ? 1.2e-38f : limit;  // still a threshold
  const int64_t parts = (rows + height - 1) / height;
  if (parts == 1) {
    columnStats(A, colStats, rounded_away, rows, cols, height, queue);
  } else {
    columnStats(A, scratch, rounded_away, rows, cols, height, queue);
    columnStats<float>(scratch, colStats, 0.0f, parts, cols, parts, queue);
  }
  const Kind kind = device_of(*queue).kind;
  const size_t wide = 16 / sizeof(T);
  const bool vectorised = cols % wide == 0 && aligned(A, 16) && aligned(out, wide);
  const ColumnShape s = column_shape<T>(kind, vectorised, true);
  // A tile's reciprocals are worth many rows; a GPU wants many tiles, to have enough loads in flight.
  const int64_t tall = kind == Kind::cpu || rows * cols > (1 << 25) ? 32 : 16;
  column_kernel<T>(kind, vectorised, true)
      .submit(*queue, groups_of(kind, s, rows, cols, tall), s.group, A, static_cast<const float*>(colStats), out, rounded_away,
              rows, cols, tall);
}

template <class T>
static void register_kernels() {
  row_kernel<T>(Kind::cpu, true, true);
  column_kernel<T>(Kind::cpu, true, true);
  zero_kernel(Kind::cpu);
}
static const bool registered = (register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int cint8_vector_quant(int dtype, const void* A, int8_t* out, float* row_stats, uint8_t* outliers, float threshold, int64_t rows,
                       int64_t cols, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::int8VectorQuant(static_cast<const T*>(A), reinterpret_cast<uint8_t*>(out), row_stats, outliers, threshold, rows, cols,
                           static_cast<sycl::queue*>(queue));
    });
  });
}

int cint8_zero_columns(int8_t* out, const int64_t* columns, int64_t n, int64_t rows, int64_t cols, void* queue, char* message,
                       size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::zeroColumns(reinterpret_cast<uint8_t*>(out), columns, n, rows, cols, static_cast<sycl::queue*>(queue));
  });
}

int cint8_column_quant(int dtype, const void* A, int8_t* out, float* col_stats, float* scratch, float threshold, int64_t rows,
                       int64_t cols, int64_t height, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::int8ColumnQuant(static_cast<const T*>(A), reinterpret_cast<uint8_t*>(out), col_stats, scratch, threshold, rows, cols,
                           height, static_cast<sycl::queue*>(queue));
    });
  });
}
