// Activations in int8: inside the region of an instruction set. They are quantised in blocks of kBlock elements of a row, and codes
// stand for code * 127, rounded.

constexpr int64_t kBlock = kInt8Block;
// An element takes two bytes in Gemm's count: a block's codes, and behind them what belongs to the block.
constexpr int64_t kElement = 2;

// Quantises rows of A and arranges their codes.
template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, char* tile);
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  with_dtype(p.dtype, [&](auto zero) { pack_as<decltype(zero)>(p, row, rows, height, first, last, static_cast<char*>(tile)); });
}

// The table of a 4-bit type in bytes, each value plus `offset`.
__m128i table_in_bytes(const float* code, int offset) {
  alignas(16) uint8_t bytes[16];
  for (int i = 0; i < 16; i++) bytes[i] = static_cast<uint8_t>(std::lrintf(code[i] * 127.0f) + offset);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

// Of the largest magnitude in a block: what makes codes of its elements, and what makes values of products of codes, of A and B.
float to_codes(float top) { return top > 1e-36f ? 127.0f / top : 0.0f; }  // of less it would be infinite
float of_products(float top) { return top / (127.0f * 127.0f); }
