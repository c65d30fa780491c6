#include "optimizer_32bit.h"

namespace bnb::cpu {
namespace {

#include "../lanes_scalar.h"
#include "../optimizer_step.h"
#include "elements.h"

const Implementation implementation{optimizer_32bit, Isa::scalar, kKernels};

}  // namespace
}  // namespace bnb::cpu
