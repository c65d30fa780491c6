// Launch of csrc/xpu_kernels/gemv_4bit.cpp.
#include "runtime.h"

namespace bnb {
namespace {

// How many weights a lane takes at once and how many rows a sub-group owns.
struct Shape {
  int group, num_per_thread, rows, steps;
};

enum Path { kAny, kFew, kMany };  // any K and pointer; fast, for matrices of few rows; fast, for many

constexpr Shape shape_of(Kind kind, Path path) {
  if (path == kAny) return {64, 1, 4, 1};
  if (kind == Kind::cpu) return {64, 2, 8, 1};
  return path == kFew ? Shape{128, 8, 1, 4} : Shape{128, 8, 4, 2};
}

template <class T>
const Kernel& kernel(Kind kind, Path path) {
  const auto make = [](Kind k, Path p) {
    const Shape s = shape_of(k, p);
    return Kernel(std::string("gemv_4bit/") + type_name<T> + (p == kAny ? "/any" : ""), "gemv_4bit", k,
                  instantiation("bnb::kgemv_4bit_inference", type_name<T>, s.group, s.num_per_thread, sub_group_size(k),
                                sizeof(T) * 8, s.rows, s.steps));
  };
  static const Kernel any[3] = {make(Kind::cpu, kAny), make(Kind::gpu16, kAny), make(Kind::gpu32, kAny)};
  static const Kernel many[3] = {make(Kind::cpu, kMany), make(Kind::gpu16, kMany), make(Kind::gpu32, kMany)};
  static const Kernel few[2] = {make(Kind::gpu16, kFew), make(Kind::gpu32, kFew)};
  const int i = static_cast<int>(kind);
  return path == kAny ? any[i] : path == kMany || kind == Kind::cpu ? many[i] : few[i - 1];
}

// Whether the fast kernels can take these operands.
template <class T>
bool fits(Kind kind, int64_t k, const T* A, const uint8_t* B, int64_t lda, int64_t ldb) {
  if (kind == Kind::cpu) return k % 32 == 0 && ldb % 32 == 0 && lda % 2 == 0 && aligned(A, 2 * sizeof(T));
  return k % 8 == 0 && ldb % 8 == 0 && lda % 8 == 0 && aligned(A, 8 * sizeof(T)) && aligned(B, 4);
}

}  // namespace

// out[m, n] = A[m, k] B[n, k]^T (+ bias), in fp32, rounded once to T. BITS: of T. lda and ldc: elements from a row of A,
// or of out, to the next; ldb: codes from a row of B to the next (k, as blocks straddle rows). `datatype`: 16 values on
// the device, or null for the table of data_type. The statistics may be nested (see BnbStatistics). Asynchronous.
template <class T, int BITS>
void gemv_4bit_inference(int64_t m, int64_t n, int64_t k, const T* A, const uint8_t* B, const float* absmax,
                         const float* datatype, T* out, int64_t lda, int64_t ldb, int64_t ldc, int64_t blocksize,
                         sycl::queue* queue, DataType data_type = NF4, BnbStatistics nested = {},
                         const T* bias = nullptr) {
  static_assert(sizeof(T) * 8 == BITS);
  if (m <= 0 || n <= 0) return;
  const int32_t shift = shift_of(blocksize);
  if (shift < 5) throw std::invalid_argument("blocksize " + std::to_string(blocksize) + " is not a power of two of 32 or more");
  const Device& device = device_of(*queue);
  Path path = kAny;
  if (fits(device.kind, k, A, B, lda, ldb)) {
    // Rows shared by a sub-group save loads of the activation, but only where there are sub-groups enough to fill the device.
    const Shape many = shape_of(device.kind, kMany);
    path = m * n / many.rows * sub_group_size(device.kind) >= device.lanes ? kMany : kFew;
  }
  const Shape shape = shape_of(device.kind, path);
  const int64_t rows_per_group = shape.group / sub_group_size(device.kind) * shape.rows;
  const int64_t groups_per_row = (n + rows_per_group - 1) / rows_per_group;
  kernel<T>(device.kind, path)
      .submit(*queue, m * groups_per_row, shape.group, n, k, A, B, absmax, nested.absmax_8bit, nested.absmax_code,
              nested.absmax_offset, bias, datatype, static_cast<int32_t>(data_type), out, lda, ldb, ldc, groups_per_row,
              shift);
}

template <class T>
static void register_kernels() {
  for (Kind kind : kKinds) kernel<T>(kind, kMany);
}
static const bool registered = (register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int cgemv_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda,
                         int64_t ldb, int64_t ldc, int64_t blocksize, const void* bias, void* queue, char* message,
                         size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::gemv_4bit_inference<T, sizeof(T) * 8>(m, n, k, static_cast<const T*>(A), B, statistics->absmax, datatype,
                                                 static_cast<T*>(out), lda, ldb, ldc, blocksize,
                                                 static_cast<sycl::queue*>(queue), static_cast<bnb::DataType>(data_type),
                                                 *statistics, static_cast<const T*>(bias));
    });
  });
}
