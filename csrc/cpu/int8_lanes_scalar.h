// What the int8 kernels need beyond lanes_scalar.h.

BNB_INLINE Lanes load(const int32_t* p) { return static_cast<float>(*p); }
BNB_INLINE Lanes load(const int8_t* p) { return static_cast<float>(*p); }
// x * y + z, rounded once: the sum in double is made odd where it is not exact, so that rounding it again is harmless.
BNB_INLINE Lanes fused(Lanes x, Lanes y, Lanes z) {
  const double product = static_cast<double>(x) * y, sum = product + z;
  const double part = sum - product, error = (product - (sum - part)) + (z - part);
  auto bits = __builtin_bit_cast(int64_t, sum);
  if (error != 0 && __builtin_isfinite(error) && !(bits & 1)) bits += (error > 0) == (sum > 0) ? 1 : -1;
  return static_cast<float>(__builtin_bit_cast(double, bits));
}
BNB_INLINE void store_low_bytes(int8_t* p, Lanes x) { *p = static_cast<int8_t>(__builtin_bit_cast(uint32_t, x)); }
BNB_INLINE bool any_at_least(Lanes x, Lanes y) { return x >= y; }
