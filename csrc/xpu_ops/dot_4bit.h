// What the launches of kgemv_4bit_inference and kgemm_4bit_inference share.
#pragma once

#include "runtime.h"

namespace bnb {

// Any K and any pointer; fast, where there are few sub-groups' worth of work; fast, where there are many.
enum Path { kAny, kFew, kMany };
constexpr std::array<Path, 3> kPaths{kAny, kFew, kMany};

// The operands of out[m, n] = A[m, k] B[n, k]^T (+ bias). lda and ldc: elements from a row of A, or of out, to the next;
// ldb: codes from a row of B to the next. `datatype`: 16 values on the device, or null for the table of data_type.
template <class T>
struct Product {
  int64_t m, n, k;
  const T* A;
  const uint8_t* B;
  BnbStatistics statistics;
  const float* datatype;
  DataType data_type;
  const T* bias;
  T* out;
  int64_t lda, ldb, ldc, blocksize;
};

// Work-items of a group, weights that a lane takes at once, rows of B and of A that a sub-group owns, unrolling.
struct DotShape {
  int group, num_per_thread, rows, steps, tile_m;
};

// Whether the fast kernels can take these operands.
template <class T>
bool fits(Kind kind, const Product<T>& p) {
  if (kind == Kind::cpu) return p.k % 32 == 0 && p.ldb % 32 == 0 && p.lda % 2 == 0 && aligned(p.A, 2 * sizeof(T));
  // The lanes hold the scales of 32 codes each: as many blocks as lanes at blocksize 32, if the row begins with one.
  const bool scales_fit = p.blocksize > 32 || p.ldb % 32 == 0;
  const bool counted_in_32_bits = p.n * p.ldb < k32BitWords;
  return scales_fit && counted_in_32_bits && p.k % 8 == 0 && p.ldb % 8 == 0 && p.lda % 8 == 0 && aligned(p.A, 8 * sizeof(T)) &&
         aligned(p.B, 4);
}

// log2 of a 4-bit type's blocksize.
inline int32_t block_shift(int64_t blocksize) {
  const int32_t shift = shift_of(blocksize);
  if (shift < 5) throw std::invalid_argument("blocksize " + std::to_string(blocksize) + " is not a power of two of 32 or more");
  return shift;
}

// Submits a kernel of these operands, whose work-groups take a tile of A's rows, of tiles_m, each.
template <class T>
void submit_product(const Kernel& kernel, sycl::queue* queue, int64_t groups, int64_t group_size, const Product<T>& p,
                    int64_t tiles_m) {
  kernel.submit(*queue, groups, group_size, p.m, p.n, p.k, p.A, p.B, p.statistics.absmax, p.statistics.absmax_8bit,
                p.statistics.absmax_code, p.statistics.absmax_offset, p.bias, p.datatype, static_cast<int32_t>(p.data_type), p.out,
                p.lda, p.ldb, p.ldc, tiles_m, block_shift(p.blocksize));
}

// Submits the kernel that `kernel(kind, path)` gives, in the shape that `shape_of(kind, path)` gives.
template <class T, class ShapeOf, class KernelOf>
void launch_dot(const Product<T>& p, sycl::queue* queue, ShapeOf&& shape_of, KernelOf&& kernel) {
  if (p.m <= 0 || p.n <= 0) return;
  const Device& device = device_of(*queue);
  const int64_t lanes = sub_group_size(device.kind);
  const auto tiles = [&](const DotShape& s) { return (p.m + s.tile_m - 1) / s.tile_m; };
  Path path = kAny;
  if (fits(device.kind, p)) {
    // Rows shared by a sub-group save loads of the activation, but only where sub-groups enough are left to fill the device.
    const DotShape many = shape_of(device.kind, kMany);
    path = tiles(many) * p.n / many.rows * lanes >= device.lanes ? kMany : kFew;
  }
  const DotShape shape = shape_of(device.kind, path);
  const int64_t rows_per_group = shape.group / lanes * shape.rows;
  submit_product(kernel(device.kind, path), queue, tiles(shape) * ((p.n + rows_per_group - 1) / rows_per_group), shape.group, p,
                 tiles(shape));
}

}  // namespace bnb
