#include <type_traits>

#include "../lanes.h"
#include "int8_vectorwise_quant.h"

namespace bnb::cpu {
namespace {
#include "../lanes_scalar.h"
#include "../int8_lanes_scalar.h"

#include "kernel.h"

const Implementation implementation{int8_vectorwise_quant, Isa::scalar, kKernels};

}  // namespace
}  // namespace bnb::cpu
