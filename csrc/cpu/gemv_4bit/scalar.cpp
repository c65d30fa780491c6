#include "gemv_4bit.h"

namespace bnb::cpu {

constinit Slot<Gemv> gemv_4bit{"gemv_4bit"};

namespace {

// None: without look-ups in registers the panels of gemm_4bit are as good.
const Implementation scalar{gemv_4bit, Isa::scalar, Gemv{0, 1, nullptr, nullptr}};

}  // namespace
}  // namespace bnb::cpu
