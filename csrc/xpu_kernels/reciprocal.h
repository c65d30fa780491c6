// What quantisation to codes of 4 and 8 bits shares: what a block is scaled by, and denormals as CUDA's kernels have them.
#pragma once
#include "device.h"

#include "../reciprocal.h"

namespace bnb {

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
