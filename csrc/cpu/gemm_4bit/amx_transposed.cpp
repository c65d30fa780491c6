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

template <class T, int PARTS>
constexpr Gemm kGemm{32,
                     16,
                     kStep,
                     2 * PARTS,
                     16,
                     &pack<T, PARTS>,
                     nullptr,
                     &columns_of_pairs<PARTS, kStep>,
                     &convert_to_pairs<PARTS, kStep>,
                     &multiply<PARTS, true>,
                     &finish,
                     &begin,
                     &end};

const Implementation for_bfloat16{gemm_4bit_transposed_bfloat16, Isa::amx, kGemm<bfloat16, 1>};
const Implementation for_float16{gemm_4bit_transposed_float16_parts, Isa::amx, kGemm<half, 2>};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
