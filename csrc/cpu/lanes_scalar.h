// lanes.h for plain x86-64.

using Lanes = float;
constexpr int kLanes = 1;

template <class T>
BNB_INLINE Lanes load(const T* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return to_float(x);
}
template <class T>
BNB_INLINE void store(T* p, Lanes x) {
  const T rounded = from_float<T>(x);
  __builtin_memcpy(p, &rounded, sizeof rounded);
}
template <class T>
BNB_INLINE Lanes rounded(Lanes x) {
  return to_float(from_float<T>(x));
}

BNB_INLINE Lanes broadcast(float x) { return x; }
BNB_INLINE Lanes magnitude(Lanes x) { return __builtin_fabsf(x); }
BNB_INLINE Lanes square_root(Lanes x) {
  float root;  // without the library's call for negative numbers
  asm("sqrtss %1, %0" : "=x"(root) : "x"(x));
  return root;
}
BNB_INLINE Lanes larger(Lanes x, Lanes maximum) { return x > maximum ? x : maximum; }
BNB_INLINE float largest(Lanes x) { return x; }
BNB_INLINE float sum(Lanes x) { return x; }

BNB_INLINE Lanes values_of(const float* map, const uint8_t* codes) { return map[*codes]; }

// value(j, state) gives vector j of 64 / kLanes, and, of SIGNED, the state that it comes from: its code, if that is of a
// value of the other sign, moves to the neighbour. Codes from `first_nonnegative` on are of values that are no negatives.
template <bool SIGNED, class Value>
BNB_INLINE void codes_64(const Thresholds& t, int first_nonnegative, const Value& value, uint8_t* out) {
  for (int j = 0; j < 64; j++) {
    Lanes state = 0;
    const Lanes x = value(j, state);
    int code = t.code_of(x);
    if constexpr (SIGNED) {
      if ((code < first_nonnegative) != (state < 0)) code += state > 0 ? 1 : -1;
    }
    out[j] = static_cast<uint8_t>(code);
  }
}
