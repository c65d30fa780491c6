// Which instruction sets there are, and which of them kernels use; huge pages; conversions without F16C.
#include "cpu.h"

#include <cpuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <vector>

namespace bnb::cpu {
namespace {

constexpr uint32_t bit(Isa isa) { return 1u << static_cast<int>(isa); }

uint64_t xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Linux gives a process AMX when it asks for it.
bool amx_permitted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

uint32_t detect() {
  uint32_t a, b, c, d, found = bit(Isa::scalar);
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29, kPopcnt = 1u << 23;
  constexpr uint32_t kNeeded = kFma | kOsxsave | kAvx | kF16c | kPopcnt;
  if ((c & kNeeded) != kNeeded) return found;
  const uint64_t saved = xcr0();  // the registers that the system keeps
  const auto keeps = [&](uint64_t mask) { return (saved & mask) == mask; };
  if (!keeps(0x6)) return found;
  uint32_t a7, b7, c7, d7, a71 = 0, b71, c71, d71;
  if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return found;
  if (a7 >= 1) __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
  uint32_t ax, bx, cx, dx;
  const bool lzcnt = __get_cpuid(0x80000001, &ax, &bx, &cx, &dx) && cx & 1u << 5;
  constexpr uint32_t kBmi = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8;
  if (!lzcnt || (b7 & (kBmi | kAvx2 | kBmi2)) != (kBmi | kAvx2 | kBmi2)) return found;
  found |= bit(Isa::avx2);
  if (a71 & 1u << 4) found |= bit(Isa::avx_vnni);
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;  // F, DQ, CD, BW, VL
  if (!keeps(0xe6) || (b7 & kAvx512) != kAvx512) return found;
  found |= bit(Isa::avx512);
  if (!(c7 & 1u << 11)) return found;
  found |= bit(Isa::avx512_vnni);
  if (!(a71 & 1u << 5)) return found;
  found |= bit(Isa::avx512_bf16);
  constexpr uint32_t kAmx = 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;  // AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8
  const bool vbmi = c7 & 1u << 1;
  if (vbmi && (d7 & kAmx) == kAmx && keeps(0x60000) && amx_permitted()) found |= bit(Isa::amx);
  return found;
}

uint32_t detected() {
  static const uint32_t mask = detect();
  return mask;
}

std::atomic<uint32_t> forced{0};
SlotBase* slots = nullptr;  // filled in while the library loads

// What a worker begins with, piece by piece; when it is done, it takes from the others'. Cores are not equally fast, those of
// hybrid CPUs least of all: none shall wait for the slowest for longer than a piece takes. But what a worker does first is the
// same in every call, since its memory may be near to it.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};
struct Work {
  std::vector<Share> shares;
  int64_t piece;
  void (*body)(int64_t, int64_t, void*);
  void* context;

  void run(size_t worker) {
    for (size_t i = 0; i < shares.size(); i++) {
      Share& share = shares[(worker + i) % shares.size()];
      // Most looks at others' shares find nothing: a load does not take the line from the core that has it.
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t first = share.next.fetch_add(piece, std::memory_order_relaxed);
        if (first < share.end) body(first, std::min(share.end, first + piece), context);
      }
    }
  }
};

}  // namespace

void share_out(const BnbThreads& threads, int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  constexpr int64_t kMost = 16;  // pieces of a share
  const int64_t workers = std::min<int64_t>(threads.count(), ceil_div(n, grain));
  if (workers <= 1) return body(0, n, context);
  const int64_t share = ceil_div(n, workers), pieces = std::min(share / grain, kMost);
  if (pieces < kFewestPieces) return threads.parallel_for(0, n, grain, body, context);
  Work work{std::vector<Share>(static_cast<size_t>(workers)), ceil_div(share, pieces), body, context};
  for (int64_t i = 0; i < workers; i++) {
    Share& its = work.shares[static_cast<size_t>(i)];
    its.next.store(i * share, std::memory_order_relaxed);
    its.end = std::min(n, (i + 1) * share);
  }
  threads.parallel_for(0, workers, 1, [](int64_t first, int64_t last, void* all) {
    for (int64_t worker = first; worker < last; worker++) static_cast<Work*>(all)->run(static_cast<size_t>(worker));
  }, &work);
}

uint32_t usable() {
  const uint32_t mask = forced.load(std::memory_order_relaxed);
  return mask ? mask : detected();
}

void enlist(SlotBase& slot, Isa isa) {
  const bool known = std::find(slot.present.begin(), slot.present.end(), true) != slot.present.end();
  slot.present[static_cast<int>(isa)] = true;
  if (known) return;
  slot.next = slots;
  slots = &slot;
}

void expect_writes(void* memory, int64_t bytes) {
  constexpr uintptr_t kHuge = 2 << 20;
  if (bytes < static_cast<int64_t>(4 * kHuge)) return;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) & ~(kHuge - 1);
  const auto end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be refused
}

float to_float(half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00) return __builtin_bit_cast(float, sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) return (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) * 0x1p-24f;
  return __builtin_bit_cast(float, sign | ((magnitude << 13) + 0x38000000));
}

template <>
half from_float<half>(float x) {
  const auto u = __builtin_bit_cast(uint32_t, x);
  const auto sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  const uint32_t magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff))};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x38800000) {  // below the normal range: the addition rounds at bit 0 of a subnormal
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}

}  // namespace bnb::cpu

// The instruction sets of this CPU that BNB_INTEL_ISA can name, "name\twhat it is" a line each.
BNB_EXPORT const char* bnb_cpu_isas() {
  static const std::string text = [] {
    std::string all;
    for (const auto& known : bnb::kIsaNames)
      if (bnb::cpu::detected() & bnb::cpu::bit(known.isa)) all += std::string(known.name) + "\t" + known.has + "\n";
    return all;
  }();
  return text.c_str();
}

// Kernels use nothing beyond the instruction set of this name from now on; "" ends that.
BNB_EXPORT int bnb_cpu_force_isa(const char* name, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    if (!*name) return forced.store(0);
    for (const auto& known : bnb::kIsaNames) {
      if (std::strcmp(known.name, name) || !(detected() & bit(known.isa))) continue;
      const uint32_t up_to = (bit(known.isa) << 1) - 1;
      const uint32_t with_vnni = known.isa == bnb::Isa::avx2 ? bit(bnb::Isa::avx_vnni) : 0;
      return forced.store(detected() & (up_to | with_vnni));
    }
    std::string has;
    for (const auto& known : bnb::kIsaNames)
      if (detected() & bit(known.isa)) has += (has.empty() ? "" : ", ") + std::string(known.name);
    throw std::invalid_argument(std::string("the instruction set must be one that this CPU has (") + has + "), got '" + name + "'");
  });
}

// Every kernel with the instruction set that answers now, "stem\tisa" a line each. Of the calling thread, until it asks again.
BNB_EXPORT const char* bnb_cpu_kernels() {
  using namespace bnb::cpu;
  thread_local std::string text;
  text.clear();
  for (const SlotBase* slot = slots; slot; slot = slot->next)
    for (int isa = bnb::kIsas; isa-- > 0;)
      if (slot->present[isa] && usable() >> isa & 1) {
        const char* name = "avx_vnni";
        for (const auto& known : bnb::kIsaNames)
          if (static_cast<int>(known.isa) == isa) name = known.name;
        text += std::string(slot->stem) + "\t" + name + "\n";
        break;
      }
  return text.c_str();
}

// On the CPU all memory is the host's.
int cis_shared(const void*, int* shared, void*, char*, size_t) {
  *shared = 1;
  return 0;
}
