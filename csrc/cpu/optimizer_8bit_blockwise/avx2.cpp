#include <immintrin.h>

#include "optimizer_8bit_blockwise.h"

BNB_AVX2_BEGIN
namespace bnb::cpu {
namespace {

#include "../lanes_avx2.h"
#include "../optimizer_step.h"
#include "blocks.h"

const Implementation implementation{optimizer_8bit_blockwise, Isa::avx2, &run};

}  // namespace
}  // namespace bnb::cpu
BNB_ISA_END
