#include "gemm_4bit.h"

#include <emmintrin.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "../gemv_4bit/gemv_4bit.h"

namespace bnb::cpu {

constinit Slot<Gemm> gemm_4bit_bfloat16{"gemm_4bit_bfloat16"}, gemm_4bit{"gemm_4bit"}, gemm_4bit_int8{"gemm_4bit_int8"};
constinit Slot<Gemm> gemm_4bit_float16_parts{"gemm_4bit_float16_parts"};
constinit Slot<Gemm> gemm_4bit_transposed_bfloat16{"gemm_4bit_transposed_bfloat16"};
constinit Slot<Gemm> gemm_4bit_transposed_float16_parts{"gemm_4bit_transposed_float16_parts"};

Scratch::~Scratch() { std::free(memory_); }

void* Scratch::bytes(int64_t size) {
  if (size > size_) {
    std::free(memory_);
    size_ = 0;
    size = ceil_div(size, 4096) * 4096;
    memory_ = std::aligned_alloc(64, static_cast<size_t>(size));
    if (!memory_) throw std::bad_alloc();
    size_ = size;
  }
  return memory_;
}

namespace {

// Weights, or elements of A, that are worth a thread.
constexpr int64_t kGrain = 1 << 16;
// Of packed rows of A; for more of them, B is dequantised more than once.
constexpr int64_t kPackedBytes = 16 << 20;
// Of packed rows of A, from where on caches do not keep them.
constexpr int64_t kStreamedBytes = 6 << 20;
// The most blocks that a part of K can be.
constexpr int64_t kMostGranules = kPart / 32;
// The rows of B that groups of rows of A pass over in turn: so many, or of so many elements.
constexpr int64_t kRowsOfGroups = 16, kElementsOfGroups = 256 << 10;
// Of A, from where on products of its parts are faster.
constexpr int64_t kPartsRows = 32;

// Kept for the next product, whichever it is: rows of A as its kernel wants them, and a thread's panels and sums.
thread_local Scratch packed_scratch, panel_scratch;

float code_at(const Product& p, int64_t at) { return p.code[p.B[at >> 1] >> (at & 1 ? 0 : 4) & 15]; }

const Gemm& kernel_for(const Product& p, uint32_t isas) {
  if (p.dtype == BNB_BFLOAT16) return gemm_4bit_bfloat16.best(isas);
  if (p.dtype == BNB_FLOAT16 && p.m >= kPartsRows)
    if (const Gemm& parts = gemm_4bit_float16_parts.best(isas); parts.max_tile) return parts;
  return gemm_4bit.best(isas);
}

const Gemm& kernel_for_transpose_of(const Product& p) {
  const uint32_t isas = usable();
  const bool parts = p.dtype == BNB_FLOAT16 && p.m >= kPartsRows;
  if (parts || p.dtype == BNB_BFLOAT16)
    if (const Gemm& best = (parts ? gemm_4bit_transposed_float16_parts : gemm_4bit_transposed_bfloat16).best(isas); best.max_tile)
      return best;
  return kernel_for(p, isas);
}

// The panel's rows whose parts begin anywhere: odd K, or K that is no multiple of 8.
void dequantize_anywhere(const Product& p, int64_t n, int64_t rows, int64_t first, int64_t k, float* panel) {
  for (int64_t r = 0; r < kPanel; r++) {
    const int64_t begin = (n + std::min(r, rows - 1)) * p.ldb + first;
    float scale = 0;
    for (int64_t i = 0; i < k; i++) {
      const int64_t at = begin + i;
      if (i == 0 || (at & (p.blocksize - 1)) == 0) scales_of(p.statistics, at >> p.shift, 1, &scale);
      panel[i * kPanel + r] = code_at(p, at) * scale;
    }
  }
}

// out[i][r] = of[r][i]
void side_by_side(const float* const (&of)[kPanel], int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int64_t r = 0; r < kPanel; r += 4) {
      __m128 a = _mm_loadu_ps(of[r] + i), b = _mm_loadu_ps(of[r + 1] + i);
      __m128 c = _mm_loadu_ps(of[r + 2] + i), d = _mm_loadu_ps(of[r + 3] + i);
      _MM_TRANSPOSE4_PS(a, b, c, d);
      float* const to = out + i * kPanel + r;
      _mm_storeu_ps(to, a);
      _mm_storeu_ps(to + kPanel, b);
      _mm_storeu_ps(to + 2 * kPanel, c);
      _mm_storeu_ps(to + 3 * kPanel, d);
    }
  for (; i < count; i++)
    for (int64_t r = 0; r < kPanel; r++) out[i * kPanel + r] = of[r][i];
}

// A K that is a multiple of 8: a dword of codes has one scale.
struct PanelMaker {
  const Product& p;
  const Gemm& kernel;
  int64_t part;  // of K, between this and the next
  float* scales;
  float* values;  // [k][kPanel], for what goes through convert

  // In a group, with many rows of A (or more), with few, and at least.
  static constexpr int64_t kPanels = 1, kPanelsOfFew = 2, kLeastPanels = 2;
  static int64_t scale_floats(int64_t) { return kPart / 8 * kPanel; }

  void operator()(int64_t n, int64_t first, int64_t k, int64_t panels, char* out, int64_t panel_bytes) const {
    for (int64_t i = 0; i < panels; i++) {
      // What comes next: the next panel's rows, or after the last the first one's further on.
      const int64_t ahead = i + 1 < panels ? kPanel * p.ldb / 2 : part / 2 - i * kPanel * p.ldb / 2;
      panel(n + i * kPanel, first, k, ahead, out + i * panel_bytes);
    }
  }

  void panel(int64_t n, int64_t first, int64_t k, int64_t ahead, void* panel) const {
    const int64_t rows = std::min<int64_t>(kPanel, p.n - n);
    if (p.ldb % 8 || p.k % 8) {
      float* const target = kernel.convert ? values : static_cast<float*>(panel);
      dequantize_anywhere(p, n, rows, first, k, target);
      if (kernel.convert) kernel.convert(values, k, panel);
      return;
    }
    PanelOfB b;
    b.code = p.code;
    b.scales = scales;
    b.granule = p.rows_aligned && first % p.blocksize == 0 ? std::min(p.blocksize, k) : 8;
    if (p.rows_aligned && first % p.blocksize) b.granule = k;  // in the middle of a block that is longer than all parts
    b.k = k;
    b.ahead = ahead;
    const int64_t granules = ceil_div(k, b.granule);
    const bool whole_blocks = b.granule == p.blocksize;
    const float* absmax[kPanel];
    for (int64_t r = 0; r < kPanel; r++) {
      const int64_t begin = (n + std::min(r, rows - 1)) * p.ldb + first;
      b.rows[r] = p.B + begin / 2;
      absmax[r] = p.statistics.absmax + (begin >> p.shift);
      if (whole_blocks && !p.statistics.absmax_8bit) {
        __builtin_prefetch(absmax[r] + kPanel * (p.ldb >> p.shift));  // the next panel's
      } else if (whole_blocks) {
        float some[kMostGranules];
        scales_of(p.statistics, begin >> p.shift, granules, some);
        for (int64_t g = 0; g < granules; g++) scales[g * kPanel + r] = some[g];
      } else {
        int64_t block = -1;
        float scale = 0;
        for (int64_t g = 0; g < granules; g++) {
          const int64_t its = (begin + g * b.granule) >> p.shift;
          if (its != block) scales_of(p.statistics, block = its, 1, &scale);
          scales[g * kPanel + r] = scale;
        }
      }
    }
    if (whole_blocks && !p.statistics.absmax_8bit) side_by_side(absmax, granules, scales);
    kernel.panel(b, panel);
  }
};

// The panels of B's transpose: p.n is B's columns, and p.k its rows, which are ldb elements apart.
struct ColumnsMaker {
  const Product& p;
  const Gemm& kernel;
  int64_t part;
  float* scales;
  float* values;  // [k][kPanel], for what goes through convert

  static constexpr int64_t kPanels = 8, kPanelsOfFew = 16, kLeastPanels = 4;  // a line of each row, two, or half of one
  static int64_t scale_floats(int64_t panels) { return kPart * panels; }

  void operator()(int64_t n, int64_t first, int64_t k, int64_t panels, char* out, int64_t panel_bytes) const {
    if (p.ldb % kPanel || p.n % kPanel) {  // a row of the panel may begin in the middle of a byte, lie in two blocks, or end early
      for (int64_t i = 0; i < panels; i++) {
        char* const panel = out + i * panel_bytes;
        anywhere(n + i * kPanel, first, k, kernel.convert ? values : reinterpret_cast<float*>(panel));
        if (kernel.convert) kernel.convert(values, k, panel);
      }
      return;
    }
    // A group begins where a block does, or lies in one; where rows begin anywhere in blocks, its panels do not share scales.
    const int64_t of_block = p.rows_aligned ? p.blocksize / kPanel : 1, blocks = ceil_div(panels, of_block);
    const int64_t begin = first * p.ldb + n;
    for (int64_t r = 0; r < k; r++) {
      const int64_t row = begin + r * p.ldb;
      if (p.rows_aligned) {
        scales_of(p.statistics, row >> p.shift, blocks, scales + r * blocks);
      } else {
        for (int64_t i = 0; i < panels; i++) scales_of(p.statistics, (row + i * kPanel) >> p.shift, 1, scales + r * panels + i);
      }
    }
    kernel.columns({p.B + begin / 2, p.ldb / 2, p.code, scales, k, panels, of_block, panel_bytes}, out);
  }

  void anywhere(int64_t n, int64_t first, int64_t k, float* target) const {
    const int64_t columns = std::min<int64_t>(kPanel, p.n - n);
    for (int64_t r = 0; r < k; r++)
      for (int64_t i = 0; i < kPanel; i++) {
        const int64_t at = (first + r) * p.ldb + n + std::min(i, columns - 1);
        float scale;
        scales_of(p.statistics, at >> p.shift, 1, &scale);
        target[r * kPanel + i] = code_at(p, at) * scale;
      }
  }
};

// Panels of a group: the most that leave each thread kFewestPieces, so that they are shared out among cores that are not equally
// fast. Where even the least do not, narrow groups gain nothing: the most that leave it one, or four.
int64_t fitted(int64_t most, int64_t least, int64_t n, int64_t threads) {
  if (threads == 1) return most;
  const auto groups = [n](int64_t panels) { return ceil_div(n, panels * kPanel); };
  for (int64_t panels = most; panels >= least; panels /= 2)
    if (groups(panels) >= kFewestPieces * threads) return panels;
  while (most > 4 && groups(most) < threads) most /= 2;
  return most;
}

template <class Maker>
void gemm(const Product& p, const Gemm& kernel, void* queue) {
  const int64_t padded_k = ceil_div(p.k, kernel.k_multiple) * kernel.k_multiple, chain = chain_of(p.k);
  const auto height_of = [&](int64_t rows) {  // tiles of about the same height
    const int64_t tiles = ceil_div(rows, kernel.max_tile);
    return std::min(kernel.max_tile, ceil_div(ceil_div(rows, tiles), kernel.tile_multiple) * kernel.tile_multiple);
  };
  const int64_t block_rows = std::max<int64_t>(
      kernel.max_tile, kPackedBytes / std::max<int64_t>(1, padded_k * kernel.element) / kernel.max_tile * kernel.max_tile);
  const int64_t threads = thread_count(queue);
  int64_t panels = p.m >= 64 ? std::max(Maker::kPanels, kernel.max_panels) : Maker::kPanelsOfFew;
  if (kernel.panels_of_large && p.m >= 64 && std::min(p.m, block_rows) * padded_k * kernel.element > kStreamedBytes &&
      p.n / (kernel.panels_of_large * kPanel) >= 2 * kFewestPieces * threads)
    panels = kernel.panels_of_large;
  panels = fitted(panels, Maker::kLeastPanels, p.n, threads);
  const int64_t part = panels <= 2 ? kernel.part_of_two : kPart;
  for (int64_t row = 0; row < p.m; row += block_rows) {
    const int64_t rows = std::min(block_rows, p.m - row);
    const int64_t height = height_of(rows), tiles = ceil_div(rows, height);
    const int64_t tile_bytes = height * padded_k * kernel.element;
    char* const packed = static_cast<char*>(packed_scratch.bytes(tiles * tile_bytes + 64));
    const int64_t steps = ceil_div(p.k, part);
    parallel_for(queue, tiles * steps, std::max<int64_t>(1, kGrain / (part * height)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        const int64_t tile = i / steps, from = i % steps * part;
        kernel.pack(p, row + tile * height, std::min(height, rows - tile * height), height, from, std::min(p.k, from + part),
                    packed + tile * tile_bytes);
      }
    });
    const int64_t wide = panels * kPanel;
    parallel_for(queue, ceil_div(p.n, wide), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, wide * p.k)),
                 [&](int64_t first, int64_t last) {
      const int64_t panel_bytes = part * kPanel * kernel.element, c_floats = tiles * height * wide;
      const int64_t scale_floats = Maker::scale_floats(panels), value_floats = kernel.convert ? kPart * kPanel : 0;
      char* const memory =
          static_cast<char*>(panel_scratch.bytes(panels * panel_bytes + 4 * (c_floats + scale_floats + value_floats)));
      float* const C = reinterpret_cast<float*>(memory + panels * panel_bytes);
      float* const scales = C + c_floats;
      const Maker make{p, kernel, part, scales, scales + scale_floats};
      if (kernel.begin) kernel.begin();
      for (int64_t group = first; group < last; group++) {
        const int64_t n = group * wide, columns = std::min(wide, p.n - n), count = ceil_div(columns, kPanel);
        const int64_t width = count * kPanel;
        std::memset(C, 0, static_cast<size_t>(tiles * height * width) * 4);
        for (int64_t from = 0; from < p.k; from += part) {
          const int64_t k = std::min(part, p.k - from), padded = ceil_div(k, kernel.k_multiple) * kernel.k_multiple;
          make(n, from, k, count, memory, panel_bytes);
          const auto part_of = [&](int64_t tile, int64_t column) {
            return packed + tile * tile_bytes + height * column * kernel.element;
          };
          for (int64_t tile = 0; tile < tiles; tile++) {
            const char* const next = tile + 1 < tiles ? part_of(tile + 1, from) : part_of(0, from + k < p.k ? from + k : 0);
            kernel.multiply(part_of(tile, from), next, height, memory, panel_bytes, count, padded, chain,
                            C + tile * height * width);
          }
        }
        kernel.finish(p, C, width, row, rows, n, columns);
      }
      if (kernel.end) kernel.end();
    });
  }
}

bool gemv(const Product& p, const Gemv& kernel, void* queue) {
  if (p.m > kernel.most_rows) return false;
  // Of about the same number of rows of A, which pass one after another over rows of B that stay in the second cache.
  const int64_t groups = ceil_div(p.m, kernel.max_rows);
  const int64_t of_row = ceil_div(p.k, kernel.step) * kernel.floats;
  float* const x = packed_scratch.floats(p.m * of_row);
  std::array<Product, kMostGroups> group;
  std::array<float*, kMostGroups> prepared;
  for (int64_t i = 0; i < groups; i++) {
    const int64_t row = p.m * i / groups;
    Product& its = group[static_cast<size_t>(i)] = p;
    its.m = p.m * (i + 1) / groups - row;
    its.A = static_cast<const char*>(p.A) + row * p.lda * size_of(p.dtype);
    its.out = static_cast<char*>(p.out) + row * p.ldc * size_of(p.dtype);
    if (!kernel.prepare(its, prepared[static_cast<size_t>(i)] = x + row * of_row)) return false;
  }
  parallel_for(queue, p.n, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, p.k)), [&](int64_t first, int64_t last) {
    const int64_t rows =
        groups == 1 ? last - first : std::max<int64_t>(kRowsOfGroups, kElementsOfGroups / std::max<int64_t>(1, p.ldb));
    for (int64_t row = first; row < last; row += rows)
      for (size_t i = 0; i < static_cast<size_t>(groups); i++) kernel.run(group[i], prepared[i], row, std::min(last, row + rows));
  });
  return true;
}

std::atomic<bool> int8_activations{false};
constexpr int64_t kInt8Rows = 8;  // of A, from where on int8 is used

void product(const Product& p, bool may_be_int8, void* queue) {
  if (p.m <= 0 || p.n <= 0) return;
  const uint32_t isas = usable();  // once: another thread may force others meanwhile
  if (may_be_int8 && int8_activations.load(std::memory_order_relaxed) && p.m >= kInt8Rows && p.rows_aligned &&
      p.blocksize >= kInt8Block && p.k % kInt8Block == 0)
    if (const Gemm& int8 = gemm_4bit_int8.best(isas); int8.max_tile) return gemm<PanelMaker>(p, int8, queue);
  const Gemm& many = kernel_for(p, isas);
  if (p.m < many.least_rows && p.rows_aligned && p.k > 0 && p.k % p.blocksize == 0) {
    const Gemv &words = gemv_4bit_words.best(isas), &floats = gemv_4bit.best(isas);
    const bool either_takes_groups = p.m > floats.max_rows;
    if (p.dtype != BNB_FLOAT32 && (p.m <= words.max_rows || either_takes_groups) && gemv(p, words, queue)) return;
    if (gemv(p, floats, queue)) return;
  }
  gemm<PanelMaker>(p, many, queue);
}

Product product_of(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B, const BnbStatistics* statistics,
                   const float* datatype, int data_type, void* out, int64_t lda, int64_t ldb, int64_t ldc, int64_t blocksize,
                   const void* bias) {
  if (blocksize < 32 || blocksize & (blocksize - 1))
    throw std::invalid_argument("blocksize must be a power of two from 32 on, got " + std::to_string(blocksize));
  if (dtype != BNB_FLOAT16 && dtype != BNB_BFLOAT16 && dtype != BNB_FLOAT32)
    throw std::invalid_argument("dtype must be float16, bfloat16 or float32, got " + std::to_string(dtype));
  const int shift = std::countr_zero(static_cast<uint64_t>(blocksize));
  return {dtype, m,   n,   k,   A,         B,    *statistics, datatype ? datatype : table_of(data_type),
          out,   lda, ldb, ldc, blocksize, bias, shift,       ldb % blocksize == 0};
}

}  // namespace
}  // namespace bnb::cpu

int cgemv_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda, int64_t ldb,
                         int64_t ldc, int64_t blocksize, const void* bias, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    product(product_of(dtype, m, n, k, A, B, statistics, datatype, data_type, out, lda, ldb, ldc, blocksize, bias), false, queue);
  });
}

int cgemm_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                         const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda, int64_t ldb,
                         int64_t ldc, int64_t blocksize, const void* bias, void*, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    const Product p = product_of(dtype, m, n, k, A, B, statistics, datatype, data_type, out, lda, ldb, ldc, blocksize, bias);
    product(p, !datatype, queue);
  });
}

int cgemm_4bit_transposed(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                          const BnbStatistics* statistics, int data_type, void* out, int64_t lda, int64_t ldb, int64_t ldc,
                          int64_t blocksize, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    // To the kernels it is a product like the others, whose weights have k rows of n.
    const Product p = product_of(dtype, m, k, n, A, B, statistics, nullptr, data_type, out, lda, ldb, ldc, blocksize, nullptr);
    if (m <= 0 || k <= 0) return;
    gemm<ColumnsMaker>(p, kernel_for_transpose_of(p), queue);
  });
}

// Whether gemm_4bit may quantise its activations to int8 from now on.
BNB_EXPORT void bnb_cpu_int8_activations(int on) { bnb::cpu::int8_activations.store(on != 0); }

int64_t cgemm_4bit_scratch(int64_t, int64_t, void*) { return 0; }

int64_t cgemm_4bit_max_rows(int, void*) { return std::numeric_limits<int64_t>::max(); }
