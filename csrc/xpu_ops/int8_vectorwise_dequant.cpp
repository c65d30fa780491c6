// Launch of csrc/xpu_kernels/int8_vectorwise_dequant.cpp.
#include "runtime.h"

namespace bnb {
namespace {

struct Shape {
  int num_per_th, steps, height, group;
};

// On GPUs 16 bytes out a lane, or an element where columns or pointers do not allow it.
template <class T>
constexpr Shape shape_of(Kind kind, bool vectorised) {
  if (kind == Kind::cpu) return {1, 16, 4, 64};
  return vectorised ? Shape{static_cast<int>(16 / sizeof(T)), 2, 2, 128} : Shape{1, 2, 2, 128};
}

template <class T>
const Kernel& kernel(Kind kind, bool vectorised) {
  static const KernelTable table([](Kind k, int v) {
    const Shape s = shape_of<T>(k, v);
    return KernelName{
        std::string("int8_vectorwise_dequant/") + short_name<T> + (v || k == Kind::cpu ? "" : "/any"),
        instantiation("bnb::kInt8VectorDequant", type_name<T>, s.num_per_th, s.steps, s.height, s.group, sub_group_size(k))};
  }, "int8_vectorwise_dequant", 2);
  return table.at(kind, vectorised);
}

}  // namespace

// out[r, c] = A[r, c] * stats[r * stride] / 127. Asynchronous.
template <class T>
void int8VectorDequant(const int8_t* A, const float* stats, T* out, int64_t stride, int64_t rows, int64_t cols,
                       sycl::queue* queue) {
  if (rows <= 0 || cols <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const size_t wide = 16 / sizeof(T);
  const bool vectorised = cols % wide == 0 && aligned(A, wide) && aligned(out, 16);
  const Shape s = shape_of<T>(kind, vectorised);
  const int64_t width = static_cast<int64_t>(s.num_per_th) * s.steps * sub_group_size(kind);
  const int64_t tiles = (cols + width - 1) / width * ((rows + s.height - 1) / s.height);
  const int64_t sub_groups = s.group / sub_group_size(kind);
  kernel<T>(kind, vectorised).submit(*queue, (tiles + sub_groups - 1) / sub_groups, s.group, A, stats, out, stride, rows, cols);
}

static const bool registered =
    (kernel<half>(Kind::cpu, true), kernel<bfloat16>(Kind::cpu, true), kernel<float>(Kind::cpu, true), true);

}  // namespace bnb

int cint8_vector_dequant(int dtype, const int8_t* A, const float* stats, void* out, int64_t stride, int64_t rows, int64_t cols,
                         void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      bnb::int8VectorDequant(A, stats, static_cast<decltype(zero)*>(out), stride, rows, cols, static_cast<sycl::queue*>(queue));
    });
  });
}
