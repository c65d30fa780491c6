#include "dequantize_blockwise.h"

namespace bnb::cpu {
namespace {

// What a byte stands for, before it is scaled.
struct Pairs {
  float value[256][2];
};
constexpr Pairs pairs_of(const float* code) {
  Pairs pairs{};
  for (int byte = 0; byte < 256; byte++) pairs.value[byte][0] = code[byte >> 4], pairs.value[byte][1] = code[byte & 15];
  return pairs;
}
constexpr Pairs kNF4Pairs = pairs_of(kNF4), kFP4Pairs = pairs_of(kFP4);

// Rounding to 16 bits is dear: the table is rounded once for each block. Blocks begin at a byte.
template <class T>
void blocks_4bit(const Dequantize& d, int64_t first, int64_t last) {
  T* const out = static_cast<T*>(d.out);
  for (int64_t block = first; block < last; block++) {
    const float scale = d.absmax[block];
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    T table[16];
    for (int i = 0; i < 16; i++) table[i] = from_float<T>(d.code[i] * scale);
    int64_t i = begin;
    if constexpr (sizeof(T) == 4) {
      const auto& pairs = d.data_type == BNB_FP4 ? kFP4Pairs : kNF4Pairs;
      for (; i + 2 <= end; i += 2) {
        const float* const pair = pairs.value[d.A[i / 2]];
        out[i] = pair[0] * scale, out[i + 1] = pair[1] * scale;
      }
    } else {
      for (; i + 2 <= end; i += 2) {
        const uint8_t byte = d.A[i / 2];
        out[i] = table[byte >> 4], out[i + 1] = table[byte & 15];
      }
    }
    if (i < end) out[i] = table[d.A[i / 2] >> 4];
  }
}

template <class T>
void blocks_8bit(const Dequantize& d, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; block++) {
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    const float scale = d.absmax[block];
    T* out = static_cast<T*>(d.out);
    for (int64_t i = begin; i < end; i++) out[i] = from_float<T>(d.code[d.A[i]] * scale);
  }
}

void run_4bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) { blocks_4bit<decltype(zero)>(d, first, last); });
}
void run_8bit(const Dequantize& d, int64_t first, int64_t last) {
  with_dtype(d.dtype, [&](auto zero) { blocks_8bit<decltype(zero)>(d, first, last); });
}

const Implementation four{dequantize_4bit, Isa::scalar, &run_4bit};
const Implementation eight{dequantize_8bit, Isa::scalar, &run_8bit};

}  // namespace
}  // namespace bnb::cpu
