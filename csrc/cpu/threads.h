// The "queue" of a CPU: how a kernel runs over the caller's threads. csrc/torch fills it in with torch's own pool.
#pragma once

#include <stdint.h>

struct BnbThreads {
  // Calls body(first, last, context) on parts of [begin, end) that are not smaller than grain, and waits for all.
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
  int (*count)();
};
