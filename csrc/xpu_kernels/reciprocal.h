// 1 / x as NVIDIA's instruction for it (rcp.approx.ftz.f32) has it. bitsandbytes' CUDA kernels are built with fast math and
// scale every block by this instruction, so its last bit decides which code an element half-way between two gets.
#pragma once
#include "device.h"

namespace bnb {

// The instruction is a parabola for each 128th of [1, 2): 4 times its value at the segment's begin in units of 2^-24; then,
// in one word, minus half its slope (above) and its curvature. Taken from the instruction's results for all 2^23 mantissas.
constexpr u32 kReciprocal[128][2] = {
    {0x4000000, 0xfffe03f5}, {0x3f80fe2, 0xfc0a03dd}, {0x3f03f06, 0xf82d03c6}, {0x3e88cb5, 0xf46703b1}, {0x3e0f83e, 0xf0b6039b},
    {0x3d980f8, 0xed1b0386}, {0x3d22638, 0xe9950373}, {0x3cae75a, 0xe622035f}, {0x3c3c3c4, 0xe2c3034d}, {0x3bcbade, 0xdf77033b},
    {0x3b5cc11, 0xdc3d0329}, {0x3aef6cb, 0xd9140317}, {0x3a83a85, 0xd5fd0306}, {0x3a196b4, 0xd2f702f6}, {0x39b0ad3, 0xd00102e6},
    {0x3949662, 0xcd1b02d7}, {0x38e38e5, 0xca4402c7}, {0x387f1e2, 0xc77c02b8}, {0x381c0e2, 0xc4c302aa}, {0x37ba572, 0xc218029d},
    {0x3759f23, 0xbf7b0290}, {0x36fad89, 0xbceb0282}, {0x369d037, 0xba690277}, {0x36406ca, 0xb7f3026a}, {0x35e50d9, 0xb589025d},
    {0x358ae06, 0xb32c0252}, {0x3531dee, 0xb0da0246}, {0x34da036, 0xae94023c}, {0x3483486, 0xac590231}, {0x342da81, 0xaa280225},
    {0x33d91d5, 0xa803021c}, {0x3385a2b, 0xa5e70211}, {0x3333335, 0xa3d60207}, {0x32e1ca1, 0xa1cf01fe}, {0x3291620, 0x9fd101f5},
    {0x3241f6b, 0x9ddc01ea}, {0x31f3833, 0x9bf101e2}, {0x31a6034, 0x9a0f01da}, {0x3159724, 0x983501d1}, {0x310dcc1, 0x966401c9},
    {0x30c30c5, 0x949b01c1}, {0x30792f1, 0x92da01b9}, {0x3030305, 0x912101b1}, {0x2fe80c2, 0x8f7001aa}, {0x2fa0bea, 0x8dc601a2},
    {0x2f5a443, 0x8c24019c}, {0x2f14992, 0x8a880193}, {0x2ecfb9e, 0x88f4018d}, {0x2e8ba31, 0x87670186}, {0x2e48511, 0x85e0017f},
    {0x2e05c0c, 0x84600179}, {0x2dc3ef0, 0x82e70173}, {0x2d82d85, 0x8174016e}, {0x2d4279c, 0x80060166}, {0x2d02d04, 0x7e9f0161},
    {0x2cc3d8e, 0x7d3e015c}, {0x2c8590d, 0x7be20155}, {0x2c47f52, 0x7a8d0151}, {0x2c0b02e, 0x793c014b}, {0x2bceb78, 0x77f10146},
    {0x2b93107, 0x76ab0140}, {0x2b580b0, 0x756b013c}, {0x2b1da49, 0x742f0136}, {0x2ae3da9, 0x72f80131}, {0x2aaaaac, 0x71c7012e},
    {0x2a7212c, 0x709a0129}, {0x2a3a100, 0x6f710123}, {0x2a02a04, 0x6e4d011f}, {0x29cbc17, 0x6d2e011b}, {0x2995712, 0x6c130117},
    {0x295fad6, 0x6afc0112}, {0x292a73f, 0x69ea010f}, {0x28f5c2b, 0x68db010a}, {0x28c197b, 0x67d10107}, {0x288df0e, 0x66ca0102},
    {0x285acc6, 0x65c80100}, {0x2828285, 0x64c900fb}, {0x27f602a, 0x63ce00f8}, {0x27c459a, 0x62d600f3}, {0x27932b6, 0x61e200f0},
    {0x2762764, 0x60f200ed}, {0x2732388, 0x600500e9}, {0x2702705, 0x5f1c00e7}, {0x26d31c1, 0x5e3500e2}, {0x26a43a1, 0x5d5200df},
    {0x2675c8d, 0x5c7300de}, {0x2647c6b, 0x5b9600da}, {0x261a322, 0x5abc00d6}, {0x25ed09a, 0x59e600d4}, {0x25c04bb, 0x591200d0},
    {0x2593f6b, 0x584100cd}, {0x2568098, 0x577400cc}, {0x253c827, 0x56a800c7}, {0x2511604, 0x55e000c5}, {0x24e6a19, 0x551b00c4},
    {0x24bc450, 0x545800c1}, {0x2492494, 0x539700bd}, {0x2468ad1, 0x52d900ba}, {0x243f6f3, 0x521e00b8}, {0x24168e3, 0x516500b6},
    {0x23ee092, 0x50af00b4}, {0x23c5de9, 0x4ffb00b2}, {0x239e0d7, 0x4f4900af}, {0x237694a, 0x4e9a00ad}, {0x234f72e, 0x4ded00ab},
    {0x2328a71, 0x4d4200a9}, {0x2302304, 0x4c9900a6}, {0x22dc0d3, 0x4bf300a5}, {0x22b63ce, 0x4b4e00a1}, {0x2290be4, 0x4aac00a0},
    {0x226b904, 0x4a0c009f}, {0x2246b1f, 0x496d009b}, {0x2222224, 0x48d1009a}, {0x21fde04, 0x48370099}, {0x21d9eaf, 0x479e0096},
    {0x21b6418, 0x47080095}, {0x2192e2c, 0x46730093}, {0x216fcdf, 0x45e00091}, {0x214d024, 0x454f008f}, {0x212a7e8, 0x44c0008f},
    {0x2108423, 0x4432008c}, {0x20e64c4, 0x43a6008a}, {0x20c49bd, 0x431c0089}, {0x20a3301, 0x42930087}, {0x2082084, 0x420c0085},
    {0x2061239, 0x41870084}, {0x2040811, 0x41030083}, {0x2020203, 0x40810082},
};

// x is not negative and no NaN. Equal to the instruction for every x with up to 12 bits of mantissa, which all float16 and
// bfloat16 are, and for 98.9 % of the others, which differ by one unit in the last place. Denormals are zero, as there.
BNB_INLINE float fast_reciprocal(float x) {
  const u32 bits = bits_as<u32>(x), low = bits & 0xffff, segment = bits >> 16 & 127;
  const u32 begin = kReciprocal[segment][0], bend = kReciprocal[segment][1];
  const u32 square = ((low >> 2) * (low >> 2)) >> 14;
  const i32 rest = static_cast<i32>(((bend & 0xffff) * square >> 1) + (begin & 3) * 2048 + 508 - ((bend >> 16) * low >> 2));
  const u32 mantissa = bits_as<u32>(static_cast<float>(static_cast<i32>(begin >> 2) + (rest >> 13)));
  const i32 exponent = static_cast<i32>(bits >> 23 & 255);
  const u32 result = mantissa + (static_cast<u32>(103 - exponent) << 23);
  if (exponent == 0) return bits_as<float>(0x7f800000);
  return static_cast<i32>(mantissa >> 23) + 103 - exponent <= 0 ? 0.0f : bits_as<float>(result);
}

// What a block's elements are multiplied by. NaN for a block of zeros: CUDA multiplies its zeros by infinity.
BNB_INLINE float block_scale(float absmax) {
  const float scale = fast_reciprocal(absmax);
  return scale < __builtin_inff() ? scale : __builtin_nanf("");
}

// Denormals count as zero, the element x / scale as well as x itself: CUDA's kernels are built so. `least` is what
// least_of(scale) says.
BNB_INLINE float least_of(float scale) { return 0x1p-126f * (scale > 1.0f ? scale : 1.0f); }
BNB_INLINE float flushed(float x, float least) { return __builtin_fabsf(x) < least ? 0.0f : x; }
BNB_INLINE float flushed(float x) { return flushed(x, 0x1p-126f); }

}  // namespace bnb
