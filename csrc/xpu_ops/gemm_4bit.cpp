// Launch of csrc/xpu_kernels/gemm_4bit.cpp.
#include "dot_4bit.h"

namespace bnb {
namespace {

constexpr DotShape gemm_shape(Kind kind, Path path) {
  if (path == kAny) return {64, 1, 4, 1, 4};
  if (kind == Kind::cpu) return {64, 2, 4, 1, 4};
  return DotShape{128, 8, path == kFew ? 1 : 4, 2, 4};
}

template <class T>
const Kernel& gemm_kernel(Kind kind, Path path) {
  static const KernelTable table([](Kind k, int p) {
    const DotShape s = gemm_shape(k, Path(p));
    return KernelName{std::string("gemm_4bit/") + short_name<T> + (p == kAny ? "/any" : ""),
                      instantiation("bnb::kgemm_4bit_inference", type_name<T>, s.group, s.num_per_thread,
                                    sub_group_size(k), s.rows, s.steps, s.tile_m)};
  }, "gemm_4bit", kPaths.size());
  return table.at(kind, path);
}

}  // namespace

// out[m, n] = A[m, k] B[n, k]^T (+ bias), in fp32, rounded once to T; B is read once for several rows of A. Arguments as
// gemv_4bit_inference's. Asynchronous.
template <class T>
void gemm_4bit_inference(int64_t m, int64_t n, int64_t k, const T* A, const uint8_t* B, const float* absmax,
                         const float* datatype, T* out, int64_t lda, int64_t ldb, int64_t ldc, int64_t blocksize,
                         sycl::queue* queue, DataType data_type, BnbStatistics nested, const T* bias) {
  nested.absmax = absmax;
  launch_dot(Product<T>{m, n, k, A, B, nested, datatype, data_type, bias, out, lda, ldb, ldc, blocksize}, queue, gemm_shape,
             gemm_kernel<T>);
}

static const bool registered = (gemm_kernel<half>(Kind::cpu, kAny), gemm_kernel<bfloat16>(Kind::cpu, kAny),
                                gemm_kernel<float>(Kind::cpu, kAny), true);

}  // namespace bnb

int cgemm_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda,
                         int64_t ldb, int64_t ldc, int64_t blocksize, const void* bias, void* queue, char* message,
                         size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::gemm_4bit_inference<T>(m, n, k, static_cast<const T*>(A), B, statistics->absmax, datatype, static_cast<T*>(out),
                                  lda, ldb, ldc, blocksize, static_cast<sycl::queue*>(queue),
                                  static_cast<bnb::DataType>(data_type), *statistics, static_cast<const T*>(bias));
    });
  });
}
