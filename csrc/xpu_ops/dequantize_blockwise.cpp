// Launch of csrc/xpu_kernels/dequantize_blockwise.cpp.
#include "runtime.h"

namespace bnb {
namespace {

struct Shape {
  int tile, num_per_th, group;
};

// Vectorised: what measured best. Otherwise: any blocksize, any pointer, an element a lane.
constexpr Shape shape_of(Kind kind, size_t element_size, bool packed, bool vectorised) {
  if (!vectorised) return {kind == Kind::cpu ? 4096 : 1024, 1, 256};
  if (kind == Kind::cpu) return {16384, 2, 64};
  const int num_per_th = element_size == 2 ? 8 : 4;  // 16 bytes a lane out
  // Four steps a sub-group on Intel GPUs, for what a thread costs at its start; one was best with sub-groups of 32.
  return {256 * num_per_th * (sub_group_size(kind) == 16 ? 4 : 1), num_per_th, 256};
}

template <class T, int DATA_TYPE>
const Kernel& kernel(Kind kind, bool vectorised) {
  static const KernelTable table([](Kind k, int v) {
    const Shape s = shape_of(k, sizeof(T), DATA_TYPE != General8bit, v);
    return KernelName{std::string("dequantize_blockwise/") + kDataTypeNames[DATA_TYPE] + "/" + short_name<T> + (v ? "" : "/any"),
                      instantiation("bnb::kDequantizeBlockwise", type_name<T>, s.tile, s.num_per_th,
                                    std::string("bnb::") + kDataTypeNames[DATA_TYPE], s.group, sub_group_size(k))};
  }, "dequantize_blockwise", 2);
  return table.at(kind, vectorised);
}

}  // namespace

// out[i] = code[A[i]] * absmax[i / blocksize], i < n; `code` may be null but for General8bit. Asynchronous.
template <class T, int DATA_TYPE>
void dequantizeBlockwise(const float* code, const uint8_t* A, const float* absmax, T* out, int64_t blocksize, int64_t n,
                         sycl::queue* queue) {
  if (n <= 0) return;
  const Kind kind = device_of(*queue).kind;
  constexpr bool packed = DATA_TYPE != General8bit;
  const Shape wide = shape_of(kind, sizeof(T), packed, true);
  const int32_t shift = shift_of(blocksize);
  const int64_t least = wide.num_per_th == 2 ? 32 : wide.num_per_th;
  const bool vectorised = n < k32BitWords && shift >= 0 && blocksize >= least &&
                          aligned(A, packed ? wide.num_per_th / 2 : wide.num_per_th) && aligned(out, wide.num_per_th * sizeof(T));
  const Shape shape = shape_of(kind, sizeof(T), packed, vectorised);
  kernel<T, DATA_TYPE>(kind, vectorised)
      .submit(*queue, (n + shape.tile - 1) / shape.tile, shape.group, code, A, absmax, out, blocksize, shift, n);
}

template <class T>
static void register_kernels() {
  kernel<T, General8bit>(Kind::cpu, true);
  kernel<T, FP4>(Kind::cpu, true);
  kernel<T, NF4>(Kind::cpu, true);
}
static const bool registered = (register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int cdequantize_blockwise(int dtype, int data_type, const float* code, const uint8_t* A, const float* absmax, void* out,
                          int64_t blocksize, int64_t n, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      auto* const q = static_cast<sycl::queue*>(queue);
      auto* const o = static_cast<T*>(out);
      switch (data_type) {
        case BNB_GENERAL8BIT: return bnb::dequantizeBlockwise<T, bnb::General8bit>(code, A, absmax, o, blocksize, n, q);
        case BNB_FP4: return bnb::dequantizeBlockwise<T, bnb::FP4>(code, A, absmax, o, blocksize, n, q);
        case BNB_NF4: return bnb::dequantizeBlockwise<T, bnb::NF4>(code, A, absmax, o, blocksize, n, q);
      }
      throw std::invalid_argument("data_type " + std::to_string(data_type) + " is not one of General8bit, FP4, NF4");
    });
  });
}
