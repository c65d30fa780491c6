// Launch of csrc/xpu_kernels/quantize_blockwise.cpp.
#include "runtime.h"

namespace bnb {
namespace {

struct Shape {
  int tile, num_per_th, group;
};

// Tiled: what measured best. Otherwise: any blocksize; a tile of 1 says that no work-group shares a block, which costs
// local memory and a barrier and is of no use on a CPU, where one thread runs a work-group.
constexpr Shape shape_of(Kind kind, bool packed, bool tiled) {
  if (!tiled) return {kind == Kind::cpu ? 1 : 2, 1, 256};
  if (kind == Kind::cpu) return {16384, 2, 64};
  return packed ? Shape{4096, 8, 128} : Shape{16384, 8, 256};
}
// The largest block of a tiled kernel: a sub-group's stretch on a CPU, a chunk of 32 elements a work-item on a GPU.
constexpr int64_t most_of(Kind kind, const Shape& s) {
  return kind == Kind::cpu ? s.tile / (s.group / sub_group_size(kind)) : s.group * 32;
}

// Blocks of more elements than this are for a work-group, not for a sub-group.
constexpr int64_t kLargeBlock = 4096;

template <class T, int DATA_TYPE>
const Kernel& kernel(Kind kind, bool tiled) {
  static const KernelTable table([](Kind k, int p) {
    const bool is_tiled = p || DATA_TYPE != General8bit;  // 4-bit types have no other blocksizes
    const Shape s = shape_of(k, DATA_TYPE != General8bit, is_tiled);
    return KernelName{
        std::string("quantize_blockwise/") + kDataTypeNames[DATA_TYPE] + "/" + short_name<T> + (is_tiled ? "" : "/any"),
        instantiation("bnb::kQuantizeBlockwise", type_name<T>, s.tile, s.num_per_th,
                      std::string("bnb::") + kDataTypeNames[DATA_TYPE], s.group, sub_group_size(k))};
  }, "quantize_blockwise", 2);
  return table.at(kind, tiled);
}

}  // namespace

// absmax of each block and the codes of A, i < n; `code` may be null but for General8bit. Asynchronous.
template <class T, int DATA_TYPE>
void quantizeBlockwise(const float* code, const T* A, float* absmax, uint8_t* out, int64_t blocksize, int64_t n,
                       sycl::queue* queue) {
  constexpr bool packed = DATA_TYPE != General8bit;
  if (blocksize <= 0) throw std::invalid_argument("blocksize " + std::to_string(blocksize) + " is not positive");
  const Kind kind = device_of(*queue).kind;
  const Shape tiles = shape_of(kind, packed, true);
  const int32_t shift = shift_of(blocksize);
  const bool tiled = shift >= 0 && blocksize >= 32 && blocksize <= most_of(kind, tiles);
  if (packed && !tiled) throw std::invalid_argument("no kernel for 4-bit blocks of " + std::to_string(blocksize));
  if (n <= 0) return;
  if (tiled) {
    const bool pairs = kind == Kind::cpu && packed;
    const size_t alignment = kind == Kind::cpu ? (pairs && sizeof(T) == 2 ? 4 : sizeof(T)) : 16;
    const bool vectorised = aligned(A, alignment) && (kind == Kind::cpu || aligned(out, packed ? 4 : 8));
    kernel<T, DATA_TYPE>(kind, true)
        .submit(*queue, (n + tiles.tile - 1) / tiles.tile, tiles.group, code, A, absmax, out, blocksize, shift, int32_t{vectorised},
                n);
  } else {
    const Shape shape = shape_of(kind, packed, false);
    const int32_t lanes = sub_group_size(kind);
    const int32_t team = blocksize <= lanes ? 1 : kind == Kind::cpu || blocksize <= kLargeBlock ? lanes : shape.group;
    const int64_t blocks = n / blocksize + (n % blocksize != 0), at_once = shape.group / team;
    kernel<T, DATA_TYPE>(kind, false)
        .submit(*queue, (blocks + at_once - 1) / at_once, shape.group, code, A, absmax, out, blocksize, team, int32_t{0}, n);
  }
}

template <class T>
static void register_kernels() {
  kernel<T, General8bit>(Kind::cpu, true);
  kernel<T, FP4>(Kind::cpu, true);
  kernel<T, NF4>(Kind::cpu, true);
}
static const bool registered = (register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int cquantize_blockwise(int dtype, int data_type, const float* code, const void* A, float* absmax, uint8_t* out, int64_t blocksize,
                        int64_t n, void* queue, char* message, size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      auto* const q = static_cast<sycl::queue*>(queue);
      const auto* const a = static_cast<const T*>(A);
      switch (data_type) {
        case BNB_GENERAL8BIT: return bnb::quantizeBlockwise<T, bnb::General8bit>(code, a, absmax, out, blocksize, n, q);
        case BNB_FP4: return bnb::quantizeBlockwise<T, bnb::FP4>(code, a, absmax, out, blocksize, n, q);
        case BNB_NF4: return bnb::quantizeBlockwise<T, bnb::NF4>(code, a, absmax, out, blocksize, n, q);
      }
      throw std::invalid_argument("data_type " + std::to_string(data_type) + " is not one of General8bit, FP4, NF4");
    });
  });
}
