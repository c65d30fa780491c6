// The 4-bit data types: the only table of them in this project, for device code and for host code.
//
// NF4: the quantiles of a normal distribution (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
// appendix E). FP4: sign, two bits of exponent, one of mantissa, with subnormals, scaled to 1. Indexed by code.
#pragma once

namespace bnb {

constexpr float kNF4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// clang-format off
constexpr float kFP4[16] = {
    0.0f, 0.005208333333f, 0.66666667f, 1.0f, 0.33333333f, 0.5f, 0.16666667f, 0.25f,
    -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f,
};
// clang-format on

// Where NF4 goes from one code to the next, in bitsandbytes' CUDA kernels: the midpoints. Where these lie half-way between two
// floats, which of them it is follows no rule.
// clang-format off
constexpr float kNF4Bounds[15] = {
    -0.8480964303f, -0.6106328964f, -0.4599952698f, -0.33967942f, -0.2346073985f, -0.137911737f,
    -0.0455250181f, 0.0397901498f, 0.1202552542f, 0.2035212517f, 0.2920137644f, 0.3893125355f, 0.5016633868f,
    0.6427869201f, 0.8614783883f,
};
// clang-format on

// Where FP4 goes from one magnitude to the next, in increasing order: the bounds of bitsandbytes' CUDA kernels.
constexpr float kFP4Bounds[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};

}  // namespace bnb
