// What codes of LLM.int8() are scaled back with, as CUDA's kernels have it; for every device.
#pragma once

namespace bnb {

constexpr float kOneBy127 = 7.874015718698502e-3f;
constexpr float kMMDequant = 6.200012e-05f;  // 1 / 127²

}  // namespace bnb
