#include "quantize_blockwise.h"

namespace bnb::cpu {
namespace {

#include "../lanes_scalar.h"

template <int DATA_TYPE, class T>
void packed_64(const T* from, float scale0, float scale1, uint8_t* to) {
  for (int i = 0; i < 32; i++) {
    const float scale = i < 16 ? scale0 : scale1;
    const uint32_t above = code_of_4bit<DATA_TYPE>(to_float(from[2 * i]) * scale);
    const uint32_t below = code_of_4bit<DATA_TYPE>(to_float(from[2 * i + 1]) * scale);
    to[i] = static_cast<uint8_t>(above << 4 | below);
  }
}

#include "blocks.h"

const Implementation four{quantize_4bit, Isa::scalar, &run_4bit};
const Implementation eight{quantize_8bit, Isa::scalar, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
