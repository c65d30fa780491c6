// Launch of csrc/xpu_kernels/gemv_4bit.cpp.
#include "dot_4bit.h"

namespace bnb {
namespace {

constexpr DotShape gemv_shape(Kind kind, Path path) {
  if (path == kAny) return {64, 1, 4, 1, 1};
  if (kind == Kind::cpu) return {64, 2, 8, 1, 1};
  // Two rows share what loading and widening the activations costs an Intel GPU; one measured as well with sub-groups of 32.
  return DotShape{128, 8, path == kMany ? 4 : sub_group_size(kind) == 16 ? 2 : 1, 4, 1};
}

template <class T>
const Kernel& gemv_kernel(Kind kind, Path path) {
  static const KernelTable table([](Kind k, int p) {
    const DotShape s = gemv_shape(k, Path(p));
    return KernelName{std::string("gemv_4bit/") + short_name<T> + (p == kAny ? "/any" : ""),
                      instantiation("bnb::kgemv_4bit_inference", type_name<T>, s.group, s.num_per_thread, sub_group_size(k),
                                    sizeof(T) * 8, s.rows, s.steps)};
  }, "gemv_4bit", kPaths.size());
  return table.at(kind, path);
}

}  // namespace

// out[m, n] = A[m, k] B[n, k]^T (+ bias), in fp32, rounded once to T, row of A by row of A. BITS: of T. ldb is k, as
// blocks straddle rows. The statistics may be nested (see BnbStatistics). Asynchronous.
template <class T, int BITS>
void gemv_4bit_inference(int64_t m, int64_t n, int64_t k, const T* A, const uint8_t* B, const float* absmax, const float* datatype,
                         T* out, int64_t lda, int64_t ldb, int64_t ldc, int64_t blocksize, sycl::queue* queue,
                         DataType data_type = NF4, BnbStatistics nested = {}, const T* bias = nullptr) {
  static_assert(sizeof(T) * 8 == BITS);
  nested.absmax = absmax;
  launch_dot(Product<T>{m, n, k, A, B, nested, datatype, data_type, bias, out, lda, ldb, ldc, blocksize}, queue, gemv_shape,
             gemv_kernel<T>);
}

static const bool registered =
    (gemv_kernel<half>(Kind::cpu, kAny), gemv_kernel<bfloat16>(Kind::cpu, kAny), gemv_kernel<float>(Kind::cpu, kAny), true);

}  // namespace bnb

int cgemv_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda, int64_t ldb,
                         int64_t ldc, int64_t blocksize, const void* bias, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::gemv_4bit_inference<T, sizeof(T) * 8>(m, n, k, static_cast<const T*>(A), B, statistics->absmax, datatype,
                                                 static_cast<T*>(out), lda, ldb, ldc, blocksize, static_cast<sycl::queue*>(queue),
                                                 static_cast<bnb::DataType>(data_type), *statistics, static_cast<const T*>(bias));
    });
  });
}
