// AVX-VNNI's product of bytes: inside its region.

// sums + the products of b's unsigned bytes and a's signed ones, by fours. Of the intrinsic GCC copies the sums to and fro.
inline __attribute__((always_inline)) __m256i dot_bytes(__m256i sums, __m256i b, __m256i a) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(b), "x"(a));
  return sums;
}
