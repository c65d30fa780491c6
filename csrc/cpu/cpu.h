// What every CPU kernel stands on: instruction sets, the choice among a kernel's implementations, threads, memory.
//
// A folder holds an operator: <stem>.h declares what its implementations look like and its slot, <stem>.cpp is its C
// interface (csrc/xpu_ops/xpu_ops.h) and the work split, and each further file is an instruction set, which puts its
// functions into the slot. Every file is compiled for plain x86-64; only what stands between BNB_<ISA>_BEGIN and
// BNB_ISA_END, in an unnamed namespace, may use more.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include "../codebook.h"
#include "../isa.h"
#include "../xpu_ops/xpu_ops.h"
#include "threads.h"

namespace bnb::cpu {

// ---- instruction sets -----------------------------------------------------------------------------------------------
#define BNB_ISA_END _Pragma("GCC pop_options")
#define BNB_AVX2_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt\")")
#define BNB_AVX_VNNI_BEGIN _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avxvnni\")")
#define BNB_AVX512_BEGIN      \
  _Pragma("GCC push_options") \
      _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd\")")
#define BNB_AVX512_VNNI_BEGIN BNB_AVX512_BEGIN _Pragma("GCC target(\"avx512vnni\")")
#define BNB_AVX512_BF16_BEGIN BNB_AVX512_VNNI_BEGIN _Pragma("GCC target(\"avx512bf16\")")
// Every CPU with AMX has AVX512-FP16 and VBMI too.
#define BNB_AMX_BEGIN BNB_AVX512_BF16_BEGIN _Pragma("GCC target(\"avx512fp16,avx512vbmi,amx-tile,amx-bf16,amx-int8\")")

// A bit for each instruction set that kernels may use: what the CPU and the system have, or what was forced.
uint32_t usable();
inline bool is_usable(Isa isa) { return usable() >> static_cast<int>(isa) & 1; }

// The implementations of one kernel. Function: a pointer to a function, or a struct of them.
struct SlotBase {
  const char* stem;
  std::array<bool, kIsas> present{};
  SlotBase* next = nullptr;
  constexpr explicit SlotBase(const char* name) : stem(name) {}
};
void enlist(SlotBase& slot, Isa isa);

template <class Function>
struct Slot : SlotBase {
  std::array<Function, kIsas> by_isa{};
  constexpr explicit Slot(const char* name) : SlotBase(name) {}

  // The best that is usable here.
  const Function& best(uint32_t mask = usable()) const {
    for (int isa = kIsas; isa-- > 1;)
      if (present[isa] && mask >> isa & 1) return by_isa[isa];
    return by_isa[0];
  }
};

// At namespace scope of an instruction set's file: `static const Implementation avx2{slot, Isa::avx2, function};`
struct Implementation {
  template <class Function>
  Implementation(Slot<Function>& slot, Isa isa, Function function) {
    slot.by_isa[static_cast<int>(isa)] = function;
    enlist(slot, isa);
  }
};

// ---- threads --------------------------------------------------------------------------------------------------------
// Of a thread's share, which other threads take from when theirs is done; work of fewer is divided once.
constexpr int64_t kFewestPieces = 4;
// body(first, last, context) on parts of [0, n), on as many of the caller's threads as have grain to do.
void share_out(const BnbThreads& threads, int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// body(first, last) on parts of [0, n), on the caller's threads; without any, or up to grain, all at once. It must not throw.
template <class Body>
void parallel_for(void* queue, int64_t n, int64_t grain, const Body& body) {
  const auto* threads = static_cast<const BnbThreads*>(queue);
  if (!threads || n <= grain) {
    if (n > 0) body(int64_t{0}, n);
    return;
  }
  share_out(*threads, n, grain, [](int64_t first, int64_t last, void* context) {
    (*static_cast<const Body*>(context))(first, last);
  }, const_cast<void*>(static_cast<const void*>(&body)));
}

inline int thread_count(void* queue) {
  const auto* threads = static_cast<const BnbThreads*>(queue);
  return threads ? threads->count() : 1;
}

// ---- memory ---------------------------------------------------------------------------------------------------------
// Before a large output is written: asks the system to back it with huge pages, if it is not backed yet. Most of the
// time that a fresh output costs is the page faults of 4 KiB each.
void expect_writes(void* memory, int64_t bytes);

// ---- arithmetic -----------------------------------------------------------------------------------------------------
// While it lives, this thread's denormals are zeros, as operands and as results: CUDA's quantisation is built so.
class FlushDenormals {
 public:
  FlushDenormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ | kFlush | kZeros); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kFlush = 0x8000, kZeros = 0x40;
  unsigned before_;
};

// ---- calls ----------------------------------------------------------------------------------------------------------
// Runs the body of a C function: 0, or 1 and the message of what it threw.
template <class Body>
int guarded(char* message, size_t message_size, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    if (message_size) std::snprintf(message, message_size, "%s", error.what());
    return 1;
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
constexpr int64_t size_of(int dtype) { return dtype == BNB_FLOAT32 ? 4 : 2; }

// The table of a 4-bit data type.
inline const float* table_of(int data_type) { return data_type == BNB_FP4 ? kFP4 : kNF4; }

// ---- conversions of one value, round to nearest even ----------------------------------------------------------------
// float16 and bfloat16 as their bits; the types are for templates.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }
float to_float(half x);
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bfloat16 from_float<bfloat16>(float x) {
  const auto u = __builtin_bit_cast(uint32_t, x);
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <>
half from_float<half>(float x);

// Calls body(T{}) with the C++ type of a dtype.
template <class Body>
decltype(auto) with_dtype(int dtype, Body&& body) {
  switch (dtype) {
    case BNB_FLOAT16: return body(half{});
    case BNB_BFLOAT16: return body(bfloat16{});
    case BNB_FLOAT32: return body(float{});
    default: throw std::invalid_argument("dtype must be float16, bfloat16 or float32, got " + std::to_string(dtype));
  }
}

}  // namespace bnb::cpu
