#include "gemv_4bit.h"

namespace bnb::cpu {

constinit Slot<Gemv> gemv_4bit{"gemv_4bit"}, gemv_4bit_words{"gemv_4bit_words"};

namespace {

// None: without look-ups in registers the panels of gemm_4bit are as good.
const Implementation scalar{gemv_4bit, Isa::scalar, Gemv{}};
const Implementation no_words{gemv_4bit_words, Isa::scalar, Gemv{}};

}  // namespace
}  // namespace bnb::cpu
