#include "quantize_blockwise.h"

namespace bnb::cpu {

constinit Slot<QuantizeBlocks> quantize_4bit{"quantize_4bit"}, quantize_8bit{"quantize_blockwise"};

namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 13;

// Whether the search by thresholds is CUDA's: no midpoint overflows, and a value follows no greater one.
bool increases(const float* code) {
  for (int i = 0; i < 255; i++)
    if (!(code[i] <= code[i + 1] && code[i] >= -0x1p126f && code[i + 1] <= 0x1p126f)) return false;
  return true;
}

// The float above x, where denormals are zeros.
float above(float x) {
  constexpr float kLeast = std::numeric_limits<float>::min();
  return std::fabs(x) < kLeast ? kLeast : std::nextafter(x, std::numeric_limits<float>::infinity());
}

// The midpoints. Where that is the lower value itself, CUDA gives this value its own code, not the even one above.
void set_thresholds(Thresholds& t, const float* code, int64_t n) {
  for (int i = 0; i < 255; i++) {
    const float middle = (code[i] + code[i + 1]) * 0.5f;
    t.sorted[i] = i % 2 && !(middle > code[i]) ? above(code[i]) : middle;
  }
  t.sorted[255] = 0;
  t.arrange(n);
}

}  // namespace
}  // namespace bnb::cpu

int cquantize_blockwise(int dtype, int data_type, const float* code, const void* A, float* absmax, uint8_t* out, int64_t blocksize,
                        int64_t n, void* queue, char* message, size_t message_size) {
  using namespace bnb::cpu;
  return guarded(message, message_size, [&] {
    const bool is_4bit = data_type == BNB_NF4 || data_type == BNB_FP4;
    if (!is_4bit && data_type != BNB_GENERAL8BIT)
      throw std::invalid_argument("data_type " + std::to_string(data_type) + " is not one of General8bit, FP4, NF4");
    if (blocksize <= 0 || (is_4bit && (blocksize < 32 || (blocksize & (blocksize - 1)))))
      throw std::invalid_argument("no kernel for blocks of " + std::to_string(blocksize));
    with_dtype(dtype, [](auto) {});
    Quantize call{dtype, data_type, code, nullptr, A, absmax, out, blocksize, n};
    Thresholds thresholds;
    if (!is_4bit && increases(code)) {
      set_thresholds(thresholds, code, n);
      call.thresholds = &thresholds;
    }
    expect_writes(out, is_4bit ? ceil_div(n, 2) : n);
    const auto run = (is_4bit ? quantize_4bit : quantize_8bit).best();
    parallel_for(queue, ceil_div(n, blocksize), std::max<int64_t>(1, kGrain / blocksize),
                 [&](int64_t first, int64_t last) { run(call, first, last); });
  });
}
