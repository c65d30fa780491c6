#include <immintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx512.h"
#include "../int8_lanes_avx512.h"
#include "words_avx512.h"
#include "../transpose_avx512.h"

#include "kernel.h"

#include "pairs.h"
struct Engine : Pairs {
  static BNB_INLINE void prepare(Words x, Words (&parts)[2]) {
    parts[0] = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8);
    parts[1] = _mm512_srai_epi16(x, 8);
  }
  static BNB_INLINE void prepare_row(Words x, Words (&parts)[2]) { prepare(x, parts); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return _mm512_add_epi32(sums, _mm512_madd_epi16(b, a)); }
};

const Implementation implementation{int8_product, Isa::avx512, kernels_of<Engine>(4)};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
