#include "../lanes.h"
#include "int8_mm_dequant.h"

namespace bnb::cpu {
namespace {
#include "../lanes_scalar.h"
#include "../int8_lanes_scalar.h"

#include "kernel.h"

const Implementation implementation{int8_mm_dequant, Isa::scalar, &run};

}  // namespace
}  // namespace bnb::cpu
