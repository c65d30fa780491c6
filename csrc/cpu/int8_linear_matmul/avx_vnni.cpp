#include <immintrin.h>

#include <utility>

#include "../lanes.h"
#include "int8_linear_matmul.h"

BNB_AVX_VNNI_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx2.h"
#include "../int8_lanes_avx2.h"
#include "words_avx2.h"
#include "../transpose_avx2.h"
#include "../dot_bytes_avx_vnni.h"

#include "kernel.h"

#include "vnni.h"
struct Engine : Bytes {
  static BNB_INLINE void prepare(Words x, Words (&parts)[1]) { parts[0] = _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
  static BNB_INLINE Words dot(Words sums, Words b, Words a) { return dot_bytes(sums, b, a); }
};

const Implementation implementation{int8_product, Isa::avx_vnni, kernels_of<Engine>()};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
