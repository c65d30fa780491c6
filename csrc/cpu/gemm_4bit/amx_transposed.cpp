// Products with B's transpose: panels of columns are the right operand, as two rows of codes make them, and A is the left one, as
// it is stored. So nothing is transposed.
#include <immintrin.h>

#include "gemm_4bit.h"

BNB_AMX_BEGIN
namespace bnb::cpu {
namespace {
#include "avx512.h"
#include "avx512_finish.h"
#include "../tiles_amx.h"
#include "amx.h"
#include "bfloat16.h"
#include "amx_bfloat16.h"

int64_t filled(int64_t k) { return ceil_div(k, kStep) * kStep; }

// For each step of K that is packed [PARTS][k / kStep][height][kStep]
template <class T, int PARTS>
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  uint16_t* const out = static_cast<uint16_t*>(tile) + first * height * PARTS;
  const int64_t part_size = filled(last - first) * height;
  for (int64_t r = 0; r < height; r++) {
    const T* const in = static_cast<const T*>(p.A) + (row + std::min(r, rows - 1)) * p.lda;
    for (int64_t k = first; k < last; k += kStep) {
      __m512i parts[PARTS];
      load_parts(in + k, r < rows ? last - k : 0, parts);
#pragma GCC unroll 2
      for (int i = 0; i < PARTS; i++) _mm512_store_si512(out + i * part_size + (k - first) * height + r * kStep, parts[i]);
    }
  }
}

// [PARTS][k / 2][kPanel][2]
template <int PARTS>
void convert(const float* values, int64_t k, void* out) {
  const auto row = [&](int64_t i) { return i < k ? _mm512_loadu_ps(values + i * kPanel) : _mm512_setzero_ps(); };
  for (int64_t i = 0; i < filled(k); i += 2) {
    __m256i even[PARTS], odd[PARTS];
    split(row(i), even);
    split(row(i + 1), odd);
    for (int j = 0; j < PARTS; j++)
      _mm512_store_si512(static_cast<char*>(out) + (j * filled(k) + i) * kPanel * 2,
                         interleaved(_mm512_inserti64x4(_mm512_castsi256_si512(even[j]), odd[j], 1)));
  }
}

template <class T, int PARTS>
constexpr Gemm kGemm{32,
                     16,
                     kStep,
                     2 * PARTS,
                     16,
                     &pack<T, PARTS>,
                     nullptr,
                     &columns_of_pairs<PARTS, kStep>,
                     &convert<PARTS>,
                     &multiply<PARTS, true>,
                     &finish,
                     &begin,
                     &end};

const Implementation for_bfloat16{gemm_4bit_transposed_bfloat16, Isa::amx, kGemm<bfloat16, 1>};
const Implementation for_float16{gemm_4bit_transposed_float16_parts, Isa::amx, kGemm<half, 2>};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
