// Activations in int8: after avx512.h, inside the region of an instruction set with AVX512. They are quantised in blocks
// of kBlock elements of a row, and codes stand for code * 127, rounded.

constexpr int64_t kBlock = 64;
// An element takes two bytes in Gemm's count: a block's codes, and behind them what belongs to the block.
constexpr int64_t kElement = 2;

// kBlock elements as codes; `scale` times both codes, of A and B, is a product of theirs. NaN is kept in the scale.
template <class T>
__m512i quantized(const T* in, float& scale) {
  __m512 x[4], most = _mm512_setzero_ps();
  __mmask16 nan = 0;
  for (int i = 0; i < 4; i++) {
    x[i] = load(in + 16 * i, 0xffff);
    nan |= _mm512_cmp_ps_mask(x[i], x[i], _CMP_UNORD_Q);
    most = _mm512_max_ps(most, _mm512_abs_ps(x[i]));
  }
  const float top = nan ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
  scale = top / (127.0f * 127.0f);
  alignas(64) int8_t codes[kBlock];
  for (int i = 0; i < 4; i++) {
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * i), _mm512_cvtsepi32_epi8(rounded));
  }
  return _mm512_load_si512(codes);
}

// Quantises rows of A and arranges their codes: each instruction set's file has its own.
template <class T>
void pack_as(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, char* tile);
void pack(const Product& p, int64_t row, int64_t rows, int64_t height, int64_t first, int64_t last, void* tile) {
  with_dtype(p.dtype, [&](auto zero) { pack_as<decltype(zero)>(p, row, rows, height, first, last, static_cast<char*>(tile)); });
}

// The table of a 4-bit type, each value plus `offset`, in every 16 bytes.
__m512i table_in_bytes(const float* code, int offset) {
  alignas(16) uint8_t bytes[16];
  for (int i = 0; i < 16; i++) bytes[i] = static_cast<uint8_t>(std::lrintf(code[i] * 127.0f) + offset);
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}
