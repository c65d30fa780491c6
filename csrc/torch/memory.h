// Memory of large results on a CPU.
//
// Most of the time that writing a fresh result of many megabytes takes is the system's: it hands out cleared pages of
// 4 KiB, one fault each. Here a result is made of huge pages, and when it is freed its memory is kept for the next one,
// marked as free for the system to take whenever it needs memory.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace bnb {

// From so many bytes on.
constexpr int64_t kLargeResult = 4 << 20;

// Uninitialised and contiguous; nothing where this torch cannot make a tensor of memory that it is given (before 2.11).
std::optional<torch::stable::Tensor> large_result(const int64_t* sizes, const int64_t* strides, int64_t dims, int64_t bytes,
                                                  int32_t dtype);

}  // namespace bnb
