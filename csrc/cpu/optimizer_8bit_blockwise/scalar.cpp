#include "optimizer_8bit_blockwise.h"

namespace bnb::cpu {
namespace {

#include "../lanes_scalar.h"
#include "../optimizer_step.h"
#include "blocks.h"

const Implementation implementation{optimizer_8bit_blockwise, Isa::scalar, &run};

}  // namespace
}  // namespace bnb::cpu
