// Launch of csrc/xpu_kernels/int8_mm_dequant.cpp.
#include "runtime.h"

namespace bnb {
namespace {

struct Shape {
  int num_per_th, steps, height, group;
};

// On GPUs 16 bytes of A a lane, or an element where columns or pointers do not allow it.
constexpr Shape shape_of(Kind kind, bool vectorised) {
  if (kind == Kind::cpu) return {1, 16, 4, 64};
  return vectorised ? Shape{4, 1, 8, 128} : Shape{1, 1, 8, 128};
}

template <class T>
const Kernel& kernel(Kind kind, bool vectorised) {
  static const KernelTable table([](Kind k, int v) {
    const Shape s = shape_of(k, v);
    return KernelName{
        std::string("int8_mm_dequant/") + short_name<T> + (v || k == Kind::cpu ? "" : "/any"),
        instantiation("bnb::kdequant_mm_int32", type_name<T>, s.num_per_th, s.steps, s.height, s.group, sub_group_size(k))};
  }, "int8_mm_dequant", 2);
  return table.at(kind, vectorised);
}

}  // namespace

// out = A * rowStats * colStats / 127² + bias + addend; the bias has bias_dtype, or is null, and so may be the addend.
// Asynchronous.
template <class T>
void dequant_mm_int32(const int32_t* A, const float* rowStats, const float* colStats, T* out, const void* bias, int bias_dtype,
                      const T* addend, int64_t rows, int64_t cols, sycl::queue* queue) {
  if (rows <= 0 || cols <= 0) return;
  const Kind kind = device_of(*queue).kind;
  const bool vectorised = cols % 4 == 0 && aligned(A, 16) && aligned(out, 4 * sizeof(T)) && aligned(addend, 4 * sizeof(T));
  const Shape s = shape_of(kind, vectorised);
  const int64_t width = static_cast<int64_t>(s.num_per_th) * s.steps * sub_group_size(kind);
  const int64_t tiles = (cols + width - 1) / width * ((rows + s.height - 1) / s.height);
  const int64_t sub_groups = s.group / sub_group_size(kind);
  kernel<T>(kind, vectorised)
      .submit(*queue, (tiles + sub_groups - 1) / sub_groups, s.group, A, rowStats, colStats, out, bias,
              static_cast<int32_t>(bias ? bias_dtype : -1), addend, rows, cols);
}

static const bool registered =
    (kernel<half>(Kind::cpu, true), kernel<bfloat16>(Kind::cpu, true), kernel<float>(Kind::cpu, true), true);

}  // namespace bnb

int cdequant_mm_int32(int dtype, const int32_t* A, const float* row_stats, const float* col_stats, void* out, const void* bias,
                      int bias_dtype, const void* addend, int64_t rows, int64_t cols, void* queue, char* message,
                      size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::dequant_mm_int32(A, row_stats, col_stats, static_cast<T*>(out), bias, bias_dtype, static_cast<const T*>(addend), rows,
                            cols, static_cast<sycl::queue*>(queue));
    });
  });
}
