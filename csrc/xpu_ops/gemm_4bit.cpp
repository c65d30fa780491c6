// Launch of csrc/xpu_kernels/gemm_4bit.cpp.
#include <limits>

#include "dot_4bit.h"

namespace bnb {
namespace {

// ---- for CPU devices: lanes along N for up to 8 rows of A, if K allows, and along M for more ----------------------------
constexpr int kTiles[] = {4, 8, 16, 32, 48, 64};  // rows of A that a sub-group takes
constexpr int kFirstAlongM = 2;

// Rows of A that are packed at a time: what bounds the scratch.
constexpr int64_t kPackedRows = 1024;

// Words, columns or pairs of them, that a work-group packs of each row of A, and work-groups for so many.
constexpr int kPackedWords = 64;
constexpr int64_t packing_groups(int64_t words) { return (words + kPackedWords - 1) / kPackedWords; }

constexpr int tile_of(int64_t m) {
  int tile = 0;
  while (tile + 1 < static_cast<int>(std::size(kTiles)) && kTiles[tile] < m) tile++;
  return tile;
}

// Sub-groups of a work-group, and rows of B that a lane owns.
struct TileShape {
  int row_groups, rows;
};
constexpr TileShape kTileShape{4, 1};
// Rows of B of a sub-group, those multiplied at a time, and columns of a part.
struct AlongMShape {
  int group_rows, rows, chunk;
};
constexpr AlongMShape along_m_shape(int tile) { return kTiles[tile] == 64 ? AlongMShape{16, 4, 64} : AlongMShape{32, 8, 64}; }

// Whether more rows of bfloat16 go by the CPU's own dot product.
bool has_pairs(Kind kind) { return kind == Kind::cpu && cpu_has_bf16(); }

template <class T>
std::string family_of(const char* suffix) {
  return std::string("gemm_4bit/") + short_name<T> + suffix;
}

template <class T>
const Kernel& tile_kernel(Kind kind, int tile) {
  static const KernelTable table([](Kind k, int t) {
    if (k != Kind::cpu) return KernelName{};
    if (t >= kFirstAlongM) {
      if (std::is_same_v<T, bfloat16> && has_pairs(k)) return KernelName{};
      const AlongMShape s = along_m_shape(t);
      return KernelName{family_of<T>("/along_m"), instantiation("bnb::kgemm_4bit_inference_along_m", type_name<T>,
                                                                sub_group_size(k), s.group_rows, s.rows, kTiles[t] / 16, s.chunk)};
    }
    const TileShape s = kTileShape;
    return KernelName{family_of<T>(""),
                      instantiation("bnb::kgemm_4bit_inference", type_name<T>, sub_group_size(k), s.row_groups, s.rows, kTiles[t])};
  }, "gemm_4bit", std::size(kTiles));
  return table.at(kind, tile);
}

template <class T>
const Kernel& widen_kernel(Kind kind) {
  static const KernelTable table([](Kind k, int) {
    if (k != Kind::cpu) return KernelName{};
    return KernelName{family_of<T>(""), instantiation("bnb::kWidenTransposed", type_name<T>, kPackedWords)};
  }, "gemm_4bit", 1);
  return table.at(kind, 0);
}

template <class T>
bool fits_tiles(const Product<T>& p) {
  return p.k % 32 == 0 && p.ldb % 32 == 0 && aligned(p.B, 4);
}

// ---- lanes along K ---------------------------------------------------------------------------------------------------
constexpr DotShape along_k_shape(Kind kind, Path path) {
  if (path == kAny) return {64, 1, 4, 1, 4};
  if (kind == Kind::cpu) return {64, 2, 4, 1, 4};  // where scratch is missing
  return DotShape{128, 8, path == kMany ? 4 : sub_group_size(kind) == 16 ? 2 : 1, 2, 4};  // as gemv_shape
}

template <class T>
const Kernel& along_k_kernel(Kind kind, Path path) {
  static const KernelTable table([](Kind k, int p) {
    const DotShape s = along_k_shape(k, Path(p));
    return KernelName{family_of<T>(p == kAny        ? "/any"
                                   : k == Kind::cpu ? "/along_k"
                                                    : ""),
                      instantiation("bnb::kgemm_4bit_inference_along_k", type_name<T>, s.group, s.num_per_thread, sub_group_size(k),
                                    s.rows, s.steps, s.tile_m)};
  }, "gemm_4bit", kPaths.size());
  return table.at(kind, path);
}

// ---- lanes along N, on GPUs ------------------------------------------------------------------------------------------
// Sub-groups that share rows of B and k, rows of B that a lane owns, rows of A of a work-group, and whether the lanes' activations
// meet in local memory.
struct AlongNShape {
  int split_k, rows, tile_m;
  bool local;
};

// Up to 4 rows of A, up to 8, up to 16, more.
constexpr int along_n_path(int64_t m) { return m <= 4 ? 0 : m <= 8 ? 1 : m <= 16 ? 2 : 3; }
constexpr size_t kAlongNPaths = 4;
constexpr AlongNShape along_n_shape(Kind kind, int path) {
  constexpr AlongNShape measured[] = {{8, 1, 4, true}, {8, 1, 8, true}, {8, 2, 8, true}, {4, 2, 16, true}};
  if (kind == Kind::mma32) return measured[path];
  // Intel's vector engines take a value of another lane as an operand; narrow registers do not hold the sums of 16 rows.
  constexpr int tile_m[] = {4, 8, 16, 16};
  return {8, 1, kind == Kind::xmx16 ? tile_m[path] : std::min(tile_m[path], 8), false};
}

template <class T>
const Kernel& along_n_kernel(Kind kind, int path) {
  static const KernelTable table([](Kind k, int p) {
    if (k == Kind::cpu) return KernelName{};
    const AlongNShape s = along_n_shape(k, p);
    return KernelName{family_of<T>("/along_n"), instantiation("bnb::kgemm_4bit_inference_along_n", type_name<T>, sub_group_size(k),
                                                              s.split_k, s.rows, s.tile_m, s.local ? "true" : "false")};
  }, "gemm_4bit", kAlongNPaths);
  return table.at(kind, path);
}

// Whether rows of B go by loads of so many bytes, from a multiple of as many, and by words that 32 bits count.
template <class T>
bool fits_loads(const Product<T>& p, size_t bytes) {
  return aligned(p.B, bytes) && p.k % 32 == 0 && p.k > 0 && p.ldb % 32 == 0 && p.n * p.ldb < k32BitWords;
}

template <class T>
bool fits_along_n(const Product<T>& p) {
  return fits_loads(p, 16) && aligned(p.A, 4) && p.lda * sizeof(T) % 4 == 0;
}

template <class T>
void launch_along_n(const Product<T>& p, Kind kind, sycl::queue* queue) {
  const int path = along_n_path(p.m);
  const AlongNShape s = along_n_shape(kind, path);
  const int64_t lanes = sub_group_size(kind), rows = lanes * s.rows, tiles_m = (p.m + s.tile_m - 1) / s.tile_m;
  submit_product(along_n_kernel<T>(kind, path), queue, tiles_m * ((p.n + rows - 1) / rows), lanes * s.split_k, p, tiles_m);
}

// ---- AVX512-BF16 on CPU devices: bfloat16 pairs, rows of A in the lanes --------------------------------------------------
constexpr size_t kPairsTiles = 4;  // 16, 32, 48, 64 rows of A

// Rows of B of a work-group, those multiplied at a time, and columns of a part.
struct PairsShape {
  int group_rows, rows, chunk;
};
constexpr PairsShape pairs_shape(int vectors) {
  const int rows = 16 / vectors;  // 16 sums leave registers for two pairs of A and to decode with
  return {rows * (40 / rows), rows, 128};
}

const Kernel& pairs_kernel(int tile) {
  static const KernelTable table([](Kind k, int t) {
    if (!has_pairs(k)) return KernelName{};
    const PairsShape s = pairs_shape(t + 1);
    return KernelName{"gemm_4bit_avx512_bf16",
                      instantiation("bnb::kgemm_4bit_inference_avx512_bf16", s.group_rows, s.rows, t + 1, s.chunk)};
  }, "gemm_4bit_avx512_bf16", kPairsTiles);
  return table.at(Kind::cpu, tile);
}

const Kernel& pack_pairs_kernel() {
  static const KernelTable table([](Kind k, int) {
    if (!has_pairs(k)) return KernelName{};
    return KernelName{"gemm_4bit_avx512_bf16", instantiation("bnb::kPackPairs", kPackedWords)};
  }, "gemm_4bit_avx512_bf16", 1);
  return table.at(Kind::cpu, 0);
}

void launch_pairs(const Product<bfloat16>& p, void* scratch, sycl::queue* queue) {
  const int tile = static_cast<int>(std::min<int64_t>((p.m + 15) / 16, kPairsTiles)) - 1;
  const int64_t height = 16 * (tile + 1), tiles_m = (p.m + height - 1) / height, padded_m = tiles_m * height;
  const int64_t rows = pairs_shape(tile + 1).group_rows;
  uint32_t* const packed = static_cast<uint32_t*>(scratch);
  pack_pairs_kernel().submit(*queue, packing_groups((p.k + 1) / 2), 1, p.A, packed, p.m, p.k, p.lda, padded_m);
  pairs_kernel(tile).submit(*queue, tiles_m * ((p.n + rows - 1) / rows), 1, p.m, p.n, p.k, static_cast<const uint32_t*>(packed),
                            p.B, p.statistics.absmax, p.statistics.absmax_8bit, p.statistics.absmax_code,
                            p.statistics.absmax_offset, p.bias, p.datatype, static_cast<int32_t>(p.data_type), p.out, padded_m,
                            p.ldb, p.ldc, tiles_m, block_shift(p.blocksize));
}

// ---- the matrix unit -------------------------------------------------------------------------------------------------
// Sub-groups that share rows of B and k, groups of them in a work-group, rows of B of a sub-group, steps of a chunk, rows
// of A of a sub-group, and words of eight codes that a lane holds of a row in a step.
struct MatrixShape {
  int split_k, row_groups, rows, steps, tile_m, words;
};

// Up to 8 rows of A, up to 16, more; for k and blocks that are multiples of 64, or else of 32.
constexpr int matrix_path(int64_t m, bool by_64) { return (m <= 8 ? 0 : m <= 16 ? 1 : 2) + (by_64 ? 3 : 0); }
constexpr size_t kMatrixPaths = 6;
constexpr MatrixShape matrix_shape(Kind kind, int path) {
  const bool by_64 = path >= 3;
  if (kind == Kind::xmx16) return {8, 1, 16, 1, path % 3 ? 16 : 8, by_64 ? 8 : 4};
  constexpr int split_k[] = {8, 4, 4}, tile_m[] = {8, 16, 32};
  return {split_k[path % 3], 1, 16, 4, tile_m[path % 3], by_64 ? 2 : 1};
}

template <class T>
const Kernel& matrix_kernel(Kind kind, int path) {
  static const KernelTable table([](Kind k, int p) {
    if (!has_matrix_unit(k)) return KernelName{};
    const MatrixShape s = matrix_shape(k, p);
    return KernelName{std::string("gemm_4bit_matrix/") + short_name<T>,
                      instantiation("bnb::kgemm_4bit_inference_matrix", type_name<T>, sub_group_size(k), s.split_k, s.row_groups,
                                    s.rows, s.steps, s.tile_m, s.words)};
  }, "gemm_4bit_matrix", kMatrixPaths);
  return table.at(kind, path);
}

template <class T>
bool fits_matrix(const Product<T>& p, Kind kind) {
  return fits_loads(p, kind == Kind::xmx16 ? 16 : 8) && p.lda % 8 == 0 && aligned(p.A, 8 * sizeof(T));
}

template <class T>
void launch_matrix(const Product<T>& p, Kind kind, sycl::queue* queue) {
  const bool by_64 = p.k % 64 == 0 && p.ldb % 64 == 0 && p.blocksize >= 64;
  const int path = matrix_path(p.m, by_64);
  const MatrixShape s = matrix_shape(kind, path);
  const int64_t tiles_m = (p.m + s.tile_m - 1) / s.tile_m, rows = int64_t{s.row_groups} * s.rows;
  const int group = sub_group_size(kind) * s.split_k * s.row_groups;
  submit_product(matrix_kernel<T>(kind, path), queue, tiles_m * ((p.n + rows - 1) / rows), group, p, tiles_m);
}

// Kernels of CPU devices, for which A is packed into the scratch.
template <class T>
void launch_packed(const Product<T>& p, Kind kind, void* scratch, sycl::queue* queue) {
  const bool by_tiles = p.m <= kTiles[kFirstAlongM - 1] && fits_tiles(p);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (has_pairs(kind) && !by_tiles) return launch_pairs(p, scratch, queue);
  }
  const int tile = by_tiles ? tile_of(p.m) : std::max(tile_of(p.m), kFirstAlongM);
  const int64_t tiles_m = (p.m + kTiles[tile] - 1) / kTiles[tile], padded_m = tiles_m * kTiles[tile];
  const int64_t lanes = sub_group_size(kind), group = by_tiles ? lanes * kTileShape.row_groups : lanes;
  const int64_t rows = by_tiles ? group * kTileShape.rows : along_m_shape(tile).group_rows;
  float* const packed = static_cast<float*>(scratch);
  widen_kernel<T>(kind).submit(*queue, packing_groups(p.k), 1, p.A, packed, p.m, p.k, p.lda, padded_m);
  tile_kernel<T>(kind, tile)
      .submit(*queue, tiles_m * ((p.n + rows - 1) / rows), group, p.m, p.n, p.k, static_cast<const float*>(packed), p.B,
              p.statistics.absmax, p.statistics.absmax_8bit, p.statistics.absmax_code, p.statistics.absmax_offset, p.bias,
              p.datatype, static_cast<int32_t>(p.data_type), p.out, padded_m, p.ldb, p.ldc, tiles_m, block_shift(p.blocksize));
}

}  // namespace

// out[m, n] = A[m, k] B[n, k]^T (+ bias), in fp32, rounded once to T; B is read once for up to 16 rows of A or more. Arguments as
// gemv_4bit_inference's; scratch holds cgemm_4bit_scratch(m, k) bytes, and must live until the queue has come so far.
template <class T>
void gemm_4bit_inference(int64_t m, int64_t n, int64_t k, const T* A, const uint8_t* B, const float* absmax, const float* datatype,
                         T* out, int64_t lda, int64_t ldb, int64_t ldc, int64_t blocksize, sycl::queue* queue, DataType data_type,
                         BnbStatistics nested, const T* bias, float* scratch) {
  nested.absmax = absmax;
  const Product<T> p{m, n, k, A, B, nested, datatype, data_type, bias, out, lda, ldb, ldc, blocksize};
  if (m <= 0 || n <= 0) return;
  const Kind kind = device_of(*queue).kind;
  if constexpr (sizeof(T) == 2) {
    if (has_matrix_unit(kind) && fits_matrix(p, kind)) return launch_matrix(p, kind, queue);
  }
  if (kind != Kind::cpu && fits_along_n(p)) return launch_along_n(p, kind, queue);
  if (kind != Kind::cpu || !scratch) return launch_dot(p, queue, along_k_shape, along_k_kernel<T>);
  for (int64_t row = 0; row < m; row += kPackedRows) {
    Product<T> part = p;
    part.m = std::min(m - row, kPackedRows);
    part.A += row * lda;
    part.out += row * ldc;
    launch_packed(part, kind, scratch, queue);
  }
}

template <class T>
static void register_kernels() {
  widen_kernel<T>(Kind::cpu);
  tile_kernel<T>(Kind::cpu, 0);
  along_k_kernel<T>(Kind::cpu, kAny);
  along_n_kernel<T>(Kind::gpu16, 0);
  if constexpr (sizeof(T) == 2) matrix_kernel<T>(Kind::xmx16, 0);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (has_pairs(Kind::cpu)) {
      pack_pairs_kernel();
      pairs_kernel(0);
    }
  }
}
static const bool registered = (register_kernels<half>(), register_kernels<bfloat16>(), register_kernels<float>(), true);

}  // namespace bnb

int64_t cgemm_4bit_scratch(int64_t m, int64_t k, void* queue) {
  if (m <= 0 || k <= 0 || bnb::device_of(*static_cast<sycl::queue*>(queue)).kind != bnb::Kind::cpu) return 0;
  m = std::min(m, bnb::kPackedRows);
  // The largest of the kernels' packed A: float32 of whole tiles, where 16 rows are the least that any K goes by.
  const int64_t tile = bnb::kTiles[std::max(bnb::tile_of(m), bnb::kFirstAlongM)];
  return (m + tile - 1) / tile * tile * k * static_cast<int64_t>(sizeof(float));
}

int64_t cgemm_4bit_max_rows(int dtype, void* queue) {
  const bnb::Kind kind = bnb::device_of(*static_cast<sycl::queue*>(queue)).kind;
  // Torch's product of float16 never wins on a CPU without its arithmetic.
  if (kind == bnb::Kind::cpu)
    return dtype == BNB_FLOAT16 && !__builtin_cpu_supports("avx512fp16") ? std::numeric_limits<int64_t>::max() : 128;
  // On a GPU whose matrix unit only torch uses, torch soon wins, but for float32, whose sums are more exact in our order.
  return dtype == BNB_FLOAT32 || bnb::has_matrix_unit(kind) ? 64 : 16;
}

int64_t cgemm_4bit_panel_bytes(void* queue) {
  // A CPU's product should find the panel in its last cache; on a GPU a launch for each panel costs more than memory does.
  return bnb::device_of(*static_cast<sycl::queue*>(queue)).kind == bnb::Kind::cpu ? 16 << 20 : 64 << 20;
}

int cgemm_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda, int64_t ldb,
                         int64_t ldc, int64_t blocksize, const void* bias, void* scratch, void* queue, char* message,
                         size_t message_size) {
  return bnb::guarded(message, message_size, [&] {
    bnb::with_dtype(dtype, [&](auto zero) {
      using T = decltype(zero);
      bnb::gemm_4bit_inference<T>(m, n, k, static_cast<const T*>(A), B, statistics->absmax, datatype, static_cast<T*>(out), lda,
                                  ldb, ldc, blocksize, static_cast<sycl::queue*>(queue), static_cast<bnb::DataType>(data_type),
                                  *statistics, static_cast<const T*>(bias), static_cast<float*>(scratch));
    });
  });
}
