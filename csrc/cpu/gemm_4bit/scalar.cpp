#include "gemm_4bit.h"

namespace bnb::cpu {
namespace {

void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  with_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    float* const out = static_cast<float*>(tile);
    for (int64_t r = 0; r < rows; r++) {
      const T* in = static_cast<const T*>(p.A) + (row + r) * p.lda;
      for (int64_t k = first; k < last; k++) out[k * height + r] = to_float(in[k]);
    }
    for (int64_t r = rows; r < height; r++)
      for (int64_t k = first; k < last; k++) out[k * height + r] = 0;
  });
}

void panel(const PanelOfB& b, void* out) {
  float* const values = static_cast<float*>(out);
  for (int64_t r = 0; r < kPanel; r++)
    for (int64_t k = 0; k < b.k; k++)
      values[k * kPanel + r] = b.code[b.rows[r][k >> 1] >> (k & 1 ? 0 : 4) & 15] * b.scales[k / b.granule * kPanel + r];
}

void columns(const ColumnsOfB& b, void* panels) {
  const int64_t blocks = ceil_div(b.panels, b.of_block);
  for (int64_t i = 0; i < b.panels; i++) {
    float* const values = reinterpret_cast<float*>(static_cast<char*>(panels) + i * b.panel_stride);
    for (int64_t r = 0; r < b.rows; r++) {
      const uint8_t* const codes = b.codes + r * b.stride + i * kPanel / 2;
      const float scale = b.scales[r * blocks + i / b.of_block];
      for (int j = 0; j < kPanel; j++) values[r * kPanel + j] = b.code[codes[j / 2] >> (j & 1 ? 0 : 4) & 15] * scale;
    }
  }
}

void multiply(const void* tile, const void*, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k,
              int64_t chain, float* C) {
  const float* const a = static_cast<const float*>(tile);
  for (int64_t i = 0; i < count; i++) {
    const float* const b = reinterpret_cast<const float*>(static_cast<const char*>(panels) + i * stride);
    for (int64_t r = 0; r < height; r++) {
      float* const c = C + (r * count + i) * kPanel;
      for (int64_t from = 0; from < k; from += chain) {
        float sums[kPanel] = {};
        for (int64_t j = from, end = std::min(k, from + chain); j < end; j++)
          for (int n = 0; n < kPanel; n++) sums[n] += a[j * height + r] * b[j * kPanel + n];
        for (int n = 0; n < kPanel; n++) c[n] += sums[n];
      }
    }
  }
}

void finish(const Product& p, const float* C, int64_t width, int64_t row, int64_t rows, int64_t n, int64_t columns) {
  with_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const bias = static_cast<const T*>(p.bias);
    for (int64_t r = 0; r < rows; r++) {
      T* const out = static_cast<T*>(p.out) + (row + r) * p.ldc + n;
      for (int64_t i = 0; i < columns; i++) out[i] = from_float<T>(C[r * width + i] + (bias ? to_float(bias[n + i]) : 0.0f));
    }
  });
}

constexpr Gemm kGemm{4, 1, 1, 4, 4, &pack, &panel, &columns, nullptr, &multiply, &finish, nullptr, nullptr};
const Implementation all{gemm_4bit, Isa::scalar, kGemm};
const Implementation bfloat16{gemm_4bit_bfloat16, Isa::scalar, kGemm};
const Implementation no_int8{gemm_4bit_int8, Isa::scalar, Gemm{}};

}  // namespace
}  // namespace bnb::cpu
