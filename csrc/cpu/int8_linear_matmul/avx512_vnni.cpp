#include <immintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

BNB_AVX512_VNNI_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx512.h"
#include "../int8_lanes_avx512.h"
#include "words_avx512.h"
#include "../transpose_avx512.h"
#include "../dot_bytes_avx512.h"

#include "kernel.h"

#include "vnni.h"
struct Engine : Bytes {
  static BNB_INLINE void prepare(Words x, Words (&parts)[1]) { parts[0] = _mm512_xor_si512(x, _mm512_set1_epi8(-128)); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return dot_bytes(sums, b, a); }
};

const Implementation implementation{int8_product, Isa::avx512_vnni, kernels_of<Engine>()};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
