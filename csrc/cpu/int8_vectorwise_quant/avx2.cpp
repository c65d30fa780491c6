#include <immintrin.h>

#include <type_traits>

#include "../lanes.h"
#include "int8_vectorwise_quant.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx2.h"
#include "../int8_lanes_avx2.h"

#include "kernel.h"

const Implementation implementation{int8_vectorwise_quant, Isa::avx2, kKernels};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
