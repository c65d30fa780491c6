// Engines without a product of bytes: they are widened to int16, and multiplied by pairs, which is exact. The bytes 0 and
// 2 of a word are one pair, 1 and 3 the other.

struct Pairs {
  static constexpr int kParts = 2, kOffset = 0;
  static BNB_INLINE void prepare_word(int32_t x, int32_t (&parts)[2]) {
    const auto pair = [](int32_t low, int32_t high) {
      return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16);
    };
    parts[0] = pair(static_cast<int8_t>(x), static_cast<int8_t>(x >> 16));
    parts[1] = pair(static_cast<int8_t>(x >> 8), x >> 24);
  }
};
