#include <immintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx2.h"
#include "../int8_lanes_avx2.h"
#include "words_avx2.h"
#include "../transpose_avx2.h"

#include "kernel.h"

#include "pairs.h"
struct Engine : Pairs {
  static BNB_INLINE void prepare(Words x, Words (&parts)[2]) {
    parts[0] = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
    parts[1] = _mm256_srai_epi16(x, 8);
  }
  static BNB_INLINE void prepare_row(Words x, Words (&parts)[2]) { prepare(x, parts); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return _mm256_add_epi32(sums, _mm256_madd_epi16(b, a)); }
};

const Implementation implementation{int8_product, Isa::avx2, kernels_of<Engine>()};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
