#include "dequantize_blockwise.h"

namespace bnb::cpu {
namespace {

template <class T>
void blocks_4bit(const Dequantize& d, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; block++) {
    T table[16];
    for (int i = 0; i < 16; i++) table[i] = from_float<T>(d.code[i] * d.absmax[block]);
    const int64_t begin = block * d.blocksize, end = std::min(d.n, begin + d.blocksize);
    T* out = static_cast<T*>(d.out);
    for (int64_t i = begin; i < end; i++) out[i] = table[d.A[i >> 1] >> (i & 1 ? 0 : 4) & 15];
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
