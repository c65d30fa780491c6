// What every kernel stands on: ids, shuffles, local memory and conversions, straight on the SPIR-V built-ins.
//
// Device code only. It is compiled at run time by the SYCL runtime's own compiler, so it includes nothing but three
// small headers, of the built-ins and of the version: a build of all kernels with them takes a tenth of one with sycl.hpp.
// The same text compiles to PTX (sub-groups of 32), where a sub-group is a warp.
#pragma once
#include <sycl/__spirv/spirv_ops.hpp>
#include <sycl/__spirv/spirv_vars.hpp>
#include <sycl/version.hpp>

#include "../codebook.h"

#define BNB_INLINE inline __attribute__((always_inline))
// A kernel: a one-dimensional nd_range free function of fixed work-group and sub-group size.
#define BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)                                                                                 \
  [[__sycl_detail__::add_ir_attributes_function("sycl-nd-range-kernel", "sycl-work-group-size", "sycl-sub-group-size", 1, \
                                                GROUP_SIZE, SUBG_SIZE)]] __attribute__((always_inline)) void
// The same where an Intel GPU's thread shall have REGISTERS registers: 128, or 256 with half as many threads at once. To other
// devices it says nothing: SYCL would ask them for what they do not know.
#ifndef BNB_INTEL_GPU
#define BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, REGISTERS) BNB_KERNEL(GROUP_SIZE, SUBG_SIZE)
#else
#define BNB_KERNEL_WITH(GROUP_SIZE, SUBG_SIZE, REGISTERS)                                                              \
  [[__sycl_detail__::add_ir_attributes_function("sycl-nd-range-kernel", "sycl-work-group-size", "sycl-sub-group-size", \
                                                "sycl-grf-size", 1, GROUP_SIZE, SUBG_SIZE, REGISTERS)]]                \
  __attribute__((always_inline)) void
#endif
// A kernel whose work-groups are one work-item each.
#define BNB_KERNEL_OF_ONE                                                                               \
  [[__sycl_detail__::add_ir_attributes_function("sycl-nd-range-kernel", "sycl-work-group-size", 1, 1)]] \
  __attribute__((always_inline)) void

// Bytes of a register of an Intel GPU: 32 before Data Center GPU Max and Arc B.
#ifndef BNB_REGISTER_BYTES
#define BNB_REGISTER_BYTES 64
#endif

namespace bnb {

constexpr bool kNarrowRegisters = BNB_REGISTER_BYTES < 64;

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long;
using i32 = int;
using i64 = long;
using half = _Float16;

enum DataType { General8bit = 0, FP4 = 1, NF4 = 2 };

// 16 bits of a bfloat16; the runtime's own class would pull in a device library.
struct bfloat16 {
  u16 bits;
};

// N values that one lane loads or stores at once.
template <class T, int N>
struct alignas(sizeof(T) * N) pack {
  T v[N];
};

// An unsigned integer of so many bytes.
template <int BYTES>
struct word_type;
template <>
struct word_type<2> {
  using type = u16;
};
template <>
struct word_type<4> {
  using type = u32;
};
template <int BYTES>
using word_of = typename word_type<BYTES>::type;

// The code of element j (0 to 7) of eight packed in a little-endian word: a byte holds its first element above.
BNB_INLINE u32 code_of(u32 word, int j) { return word >> (8 * (j / 2) + (j % 2 ? 0 : 4)) & 15; }
// The code of element i of a packed buffer.
BNB_INLINE u32 code_at(const u8* packed, i64 i) { return packed[i >> 1] >> (i & 1 ? 0 : 4) & 15; }

template <class To, class From>
BNB_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

// ---- where am I -----------------------------------------------------------------------------------------------------
#if __LIBSYCL_MAJOR_VERSION >= 9  // built-ins are functions of the dimension
BNB_INLINE i64 group_id() { return __spirv_BuiltInWorkgroupId(0); }
BNB_INLINE i32 local_id() { return __spirv_BuiltInLocalInvocationId(0); }
BNB_INLINE i32 lane_id() { return __spirv_BuiltInSubgroupLocalInvocationId(); }
BNB_INLINE i32 sub_group_id() { return __spirv_BuiltInSubgroupId(); }
#else  // libsycl 8
BNB_INLINE i64 group_id() { return __spirv::getWorkgroupId<0>(); }
BNB_INLINE i32 local_id() { return __spirv::getLocalInvocationId<0>(); }
#ifdef __NVPTX__
BNB_INLINE i32 lane_id() { return __spirv_SubgroupLocalInvocationId(); }
BNB_INLINE i32 sub_group_id() { return __spirv_SubgroupId(); }
#else
BNB_INLINE i32 lane_id() { return __spirv_BuiltInSubgroupLocalInvocationId; }
BNB_INLINE i32 sub_group_id() { return __spirv_BuiltInSubgroupId; }
#endif
#endif

// ---- sub-group and work-group ---------------------------------------------------------------------------------------
constexpr int kScopeWorkGroup = 2, kScopeSubGroup = 3, kAcquireReleaseLocal = 0x8 | 0x100;

// The value that lane `from` holds. Every lane of the sub-group must arrive here.
template <class T>
BNB_INLINE T shuffle(T value, u32 from) {
#ifdef __NVPTX__
  return bits_as<T>(__nvvm_shfl_sync_idx_i32(0xffffffff, bits_as<i32>(value), from, 0x1f));
#else
  return __spirv_GroupNonUniformShuffle(kScopeSubGroup, value, from);
#endif
}

// What a table of 16, which lies in the lanes and is repeated where there are more, has for code j of a word.
template <class T>
BNB_INLINE T look_up(T table, u32 word, int j) {
#ifdef __NVPTX__
  return shuffle(table, word >> (8 * (j / 2) + (j % 2 ? 0 : 4)));  // the shuffle takes 5 bits
#else
  return shuffle(table, code_of(word, j));
#endif
}

template <class T>
BNB_INLINE T shuffle_xor(T value, u32 mask) {
#ifdef __NVPTX__
  return bits_as<T>(__nvvm_shfl_sync_bfly_i32(0xffffffff, bits_as<i32>(value), mask, 0x1f));
#else
  return __spirv_GroupNonUniformShuffleXor(kScopeSubGroup, value, mask);
#endif
}

// A value that is the same in all lanes, told to the compiler.
BNB_INLINE u32 uniform(u32 value) { return shuffle(value, 0); }

// The sum over a sub-group, in every lane, added in a fixed order.
template <int SUBG_SIZE>
BNB_INLINE float sub_group_sum(float value) {
#pragma unroll
  for (int mask = SUBG_SIZE / 2; mask; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// values[i] = from[i * 16 + lane], in one message whose address, a multiple of 4, is the sub-group's, not each lane's. For
// sub-groups of 16 on an Intel device; every lane of the sub-group must arrive here. Word: u32 or u16.
template <class Word, int N>
BNB_INLINE void block_read(const Word* from, Word (&values)[N]) {
#ifdef __NVPTX__
  static_assert(N == 0, "no such message");
#else
  using column = Word __attribute__((ext_vector_type(N)));
  const auto v = __spirv_SubgroupBlockReadINTEL<column>((const __attribute__((opencl_global)) Word*)from);
#pragma unroll
  for (int i = 0; i < N; i++) values[i] = v[i];
#endif
}

// The larger of a value and the maximum so far; NaN is no maximum.
BNB_INLINE float larger(float value, float maximum) {
#ifdef __NVPTX__
  return __builtin_fmaxf(value, maximum);
#else
  return value > maximum ? value : maximum;
#endif
}

BNB_INLINE float magnitude(float x) { return bits_as<float>(bits_as<u32>(x) & 0x7fffffff); }

// The largest value of a sub-group, in every lane.
template <int SUBG_SIZE>
BNB_INLINE float sub_group_max(float value) {
#pragma unroll
  for (int mask = SUBG_SIZE / 2; mask; mask /= 2) value = larger(shuffle_xor(value, mask), value);
  return value;
}

BNB_INLINE void barrier() { __spirv_ControlBarrier(kScopeWorkGroup, kScopeWorkGroup, kAcquireReleaseLocal); }

// For what a sub-group's lanes tell one another through local memory.
BNB_INLINE void sub_group_barrier() { __spirv_ControlBarrier(kScopeSubGroup, kScopeSubGroup, kAcquireReleaseLocal); }

// Work-group local memory: `static local_memory<float[256]> table;`
template <class T>
class [[__sycl_detail__::wg_scope]] local_memory {
 public:
  T data;
};

// ---- conversions: round to nearest even -----------------------------------------------------------------------------
BNB_INLINE float to_float(float x) { return x; }
BNB_INLINE float to_float(half x) { return static_cast<float>(x); }
BNB_INLINE float to_float(bfloat16 x) { return bits_as<float>(static_cast<u32>(x.bits) << 16); }

template <class T>
BNB_INLINE T from_float(float x) {
  return static_cast<T>(x);
}
template <>
BNB_INLINE bfloat16 from_float<bfloat16>(float x) {
  const u32 u = bits_as<u32>(x);
  const u32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return {static_cast<u16>(x != x ? 0x7fc0 : rounded)};
}

// N values, rounded to T and packed. None may be a NaN other than the standard one, whose payload is zero: without that
// case, rounding to bfloat16 takes half of the instructions.
template <class T, int N>
BNB_INLINE pack<T, N> pack_plain(const float (&x)[N]) {
  pack<T, N> result;
  if constexpr (sizeof(T) == 2 && !__is_same(T, half)) {
    pack<u32, N / 2> words;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
      const u32 a = bits_as<u32>(x[j]), b = bits_as<u32>(x[j + 1]);
      words.v[j / 2] = (a + 0x7fff + (a >> 16 & 1)) >> 16 | ((b + 0x7fff + (b >> 16 & 1)) & 0xffff0000u);
    }
    result = bits_as<pack<T, N>>(words);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) result.v[j] = from_float<T>(x[j]);
  }
  return result;
}

}  // namespace bnb
