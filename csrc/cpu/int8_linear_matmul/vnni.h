// Engines with a product of uint8 and int8 by fours: B is made uint8 by adding 128, and the sums of a row begin with what
// that is too much.

struct Bytes {
  static constexpr int kParts = 1, kOffset = 128;
  static BNB_INLINE void prepare_row(Words x, Words (&parts)[1]) { parts[0] = x; }
  static BNB_INLINE void prepare_word(int32_t x, int32_t (&parts)[1]) { parts[0] = x; }
};
