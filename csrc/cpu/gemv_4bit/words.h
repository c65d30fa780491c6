// Weights and activations as whole numbers of 16 bits, in steps whose sums of products fit in 32: 8 products of a lane. Weights are
// those of NF4 to 2^-15.3 of each, and those of FP4 exactly. An element of A is two words, 26 bits below the largest magnitude of
// its step: all that a bfloat16 has unless it is below 2^-18 of that, and a float16 unless it is below 2^-15.
#pragma once
#include <algorithm>

#include "gemv_4bit.h"

namespace bnb::cpu {

struct WordTable {
  float factor;  // of the words, chosen so that none is rounded by much of itself
  int16_t words[16] = {};

  constexpr WordTable(const float (&code)[16], float its) : factor(its) {
    for (int i = 0; i < 16; i++) words[i] = static_cast<int16_t>(code[i] * its + (code[i] < 0 ? -0.5f : 0.5f));
  }
};
inline constexpr WordTable kNF4Words(kNF4, 28775.75f), kFP4Words(kFP4, 32640.0f);

// Null for what a caller of gemv_4bit has as a table of its own.
inline const WordTable* words_of(const float* code) {
  if (std::equal(code, code + 16, kNF4)) return &kNF4Words;
  if (std::equal(code, code + 16, kFP4)) return &kFP4Words;
  return nullptr;
}

// Of an element's two words: the high one is in [-2^kHighBits, 2^kHighBits], the low one 2^-kLowBits of its unit, half a unit at
// most.
constexpr int kHighBits = 12, kLowBits = 14;
static_assert(8 * 32767 * (int64_t{1} << (kLowBits - 1)) < int64_t{1} << 31);

// Of a step's largest magnitude: what its others must come to, each counted up to an eighth of that. Else, where the large ones
// meet weights of zero, what was rounded off the small ones could be more than the result's dtype rounds off.
constexpr float least_rest(bool is_half) { return is_half ? 0x1p-7f : 0x1p-10f; }

// For a step whose largest magnitude is `top`: what makes high words of its elements, and what makes values of products. False
// where they would be infinities or denormals.
inline bool word_scales(const WordTable& table, float top, float& up, float& scale) {
  const int exponent = static_cast<int>(__builtin_bit_cast(uint32_t, top) >> 23) - 126;  // top < 2^exponent
  const auto power = [](int e) { return __builtin_bit_cast(float, (e + 127) << 23); };
  up = scale = 0;
  if (top == 0) return true;
  if (exponent < -80 || exponent > 100) return false;
  up = power(kHighBits - exponent), scale = power(exponent - kHighBits) / table.factor;
  return true;
}

}  // namespace bnb::cpu
