// The instruction sets of CPU kernels, for the libraries of both devices.
#pragma once

namespace bnb {

// In the order in which they are preferred; each takes in those above it, but for AVX-VNNI, which belongs to AVX2.
enum class Isa { scalar, avx2, avx_vnni, avx512, avx512_vnni, avx512_bf16, amx };
constexpr int kIsas = 7;

// What BNB_INTEL_ISA can say. AVX-VNNI comes with avx2, on CPUs that have it.
struct IsaName {
  const char* name;
  Isa isa;
  const char* has;  // for people
};
constexpr IsaName kIsaNames[] = {
    {"scalar", Isa::scalar, "x86-64"},
    {"avx2", Isa::avx2, "AVX2, FMA, F16C"},
    {"avx512", Isa::avx512, "AVX512F/BW/DQ/VL"},
    {"avx512_vnni", Isa::avx512_vnni, "AVX512-VNNI"},
    {"avx512_bf16", Isa::avx512_bf16, "AVX512-BF16"},
    {"amx", Isa::amx, "AMX, AVX512-FP16"},
};

}  // namespace bnb
