#include <immintrin.h>

#include "gemv_4bit.h"
#include "words.h"

BNB_AVX_VNNI_BEGIN
namespace bnb::cpu {
namespace {
#include "../gemm_4bit/avx2.h"
#include "avx2_rows.h"

// Of the intrinsic GCC copies the sums to and fro.
inline __attribute__((always_inline)) __m256i dot_words(__m256i sums, __m256i b, const __m256i_u& a) {
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(b), "m"(a));
  return sums;
}
#include "avx2_words.h"

void run_words(const Product& p, const float* x, int64_t first, int64_t last) {
  constexpr decltype(&run_words_of<1>) kRuns[] = {nullptr, &run_words_of<1>, &run_words_of<2>, &run_words_of<3>};
  kRuns[p.m](p, x, first, last);
}

const Implementation words{gemv_4bit_words, Isa::avx_vnni, Gemv{6, 3, kStep, Words::kFloats, &prepare_words, &run_words}};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
