// AVX512-VNNI's product of bytes: inside its region.

// sums + the products of b's unsigned bytes and a's signed ones, by fours. Of the intrinsic GCC copies the sums to and fro.
inline __attribute__((always_inline)) __m512i dot_bytes(__m512i sums, __m512i b, __m512i a) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(b), "v"(a));
  return sums;
}
