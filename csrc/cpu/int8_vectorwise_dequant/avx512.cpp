#include <immintrin.h>

#include "../lanes.h"
#include "int8_vectorwise_dequant.h"

BNB_AVX512_BEGIN
namespace bnb::cpu {
namespace {
#include "../lanes_avx512.h"
#include "../int8_lanes_avx512.h"

#include "kernel.h"

const Implementation implementation{int8_vectorwise_dequant, Isa::avx512, &run};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
