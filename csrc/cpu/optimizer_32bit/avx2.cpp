#include <immintrin.h>

#include "optimizer_32bit.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx2.h"
#include "../optimizer_step.h"
#include "elements.h"

const Implementation implementation{optimizer_32bit, Isa::avx2, kKernels};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
