// For kernels that are written once for all instruction sets: lanes_<isa>.h defines the vocabulary for one of them. It is
// included by an instruction set's file between BNB_<ISA>_BEGIN and BNB_ISA_END, in the unnamed namespace, before the
// kernels' header.
//
//   Lanes, kLanes              a vector of so many floats; + - * / and comparisons work on it, and `mask ? Lanes : Lanes`
//   load(p), store(p, x)       of float, half or bfloat16, at any address; rounded<T>(x): to T and back
//   broadcast, magnitude, square_root, largest (of all lanes), sum (in a fixed order)
//   larger(x, maximum)         NaN is no maximum
//   values_of(map, codes)      kLanes values of a map of 256
//   codes_64<SIGNED>(...)      64 values to codes of a map of 256, see map256.h
#pragma once

#include "cpu.h"
#include "map256.h"

#define BNB_INLINE inline __attribute__((always_inline))
