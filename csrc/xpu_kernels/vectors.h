// For kernels of CPU devices alone: whole vectors in one work-item, transposition, and the order of gemm_4bit's parts.
#pragma once
#include "dot_4bit.h"

namespace bnb {

template <class T>
using x16 = T __attribute__((ext_vector_type(16)));

// Vectors in memory lie at any alignment. A vector type that says so is not enough: CPU devices before 2026.2 do not heed it.
template <class V>
BNB_INLINE V vector_at(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
BNB_INLINE void put(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first `count` of 16 values; 0 behind them.
template <class T>
BNB_INLINE x16<T> first_of(const T* p, i64 count) {
  if (count >= 16) return vector_at<x16<T>>(p);
  x16<T> v = 0;
  for (int i = 0; i < count; i++) v[i] = p[i];
  return v;
}

BNB_INLINE void prefetch(const void* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
BNB_INLINE void prefetch_scale(const Statistics& of, i64 block) {
  prefetch(of.absmax_8bit ? static_cast<const void*>(of.absmax_8bit + block) : of.absmax + block);
}

template <class T>
BNB_INLINE void exchange(T*& a, T*& b) {
  T* const of_a = a;
  a = b;
  b = of_a;
}

// Swaps the off-diagonal quarters of each square of 2 * STEP rows and columns.
template <int STEP>
BNB_INLINE void swap_quarters(x16<u32> (&row)[16]) {
#define BNB_OF_FIRST(i) ((i) & STEP ? 16 + ((i) ^ STEP) : (i))
#define BNB_OF_SECOND(i) ((i) & STEP ? 16 + (i) : (i) ^ STEP)
#define BNB_16(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#pragma unroll
  for (int i = 0; i < 16; i++) {
    if (i & STEP) continue;
    const x16<u32> a = row[i], b = row[i + STEP];
    row[i] = __builtin_shufflevector(a, b, BNB_16(BNB_OF_FIRST));
    row[i + STEP] = __builtin_shufflevector(a, b, BNB_16(BNB_OF_SECOND));
  }
#undef BNB_16
#undef BNB_OF_SECOND
#undef BNB_OF_FIRST
}

BNB_INLINE void transpose(x16<u32> (&row)[16]) {
  swap_quarters<8>(row);
  swap_quarters<4>(row);
  swap_quarters<2>(row);
  swap_quarters<1>(row);
}

// X[p * padded_m + m] = word p of row m of A, of `words` each: load(m, p) has 16 of those from p on. 0 for m from M to padded_m,
// which is 4, 8 or a multiple of 16. A work-group takes GROUP_WORDS words of each row.
template <int GROUP_WORDS, class Load>
BNB_INLINE void pack_transposed(u32* X, i64 words, i64 M, i64 padded_m, const Load& load) {
  const i64 first = group_id() * GROUP_WORDS;
  const i64 end = first + GROUP_WORDS < words ? first + GROUP_WORDS : words;
  for (i64 m = 0; m < padded_m; m += 16) {
    for (i64 p = first; p < end; p += 16) {
      x16<u32> row[16];
#pragma unroll
      for (int i = 0; i < 16; i++) row[i] = m + i < M ? load(m + i, p) : x16<u32>(0);
      transpose(row);
      u32* const to = X + p * padded_m + m;
#pragma unroll
      for (int i = 0; i < 16; i++) {
        if (p + i >= end) break;
        const x16<u32> v = row[i];
        if (padded_m >= 16) {
          put(to + i * padded_m, v);
        } else {
          put(to + i * padded_m, __builtin_shufflevector(v, v, 0, 1, 2, 3));
          if (padded_m == 8) put(to + i * padded_m + 4, __builtin_shufflevector(v, v, 4, 5, 6, 7));
        }
      }
    }
  }
}

// `columns` columns from k0 on, of the rows of B from r on.
struct Part {
  int r;
  i64 k0;
  int columns;
};

// Columns of a part that begins at k0: 0 behind the last.
template <int CHUNK>
BNB_INLINE int columns_from(i64 k0, i64 K) {
  return K - k0 >= CHUNK ? CHUNK : k0 < K ? static_cast<int>(K - k0) : 0;
}

// f(part, next, beside) for every part of `rows` rows, CHUNK columns of ROWS rows at a time. `next` is the part that follows, of
// no columns behind the last; `beside` says that both have CHUNK columns, and the next one ROWS rows whose codes begin at multiples
// of 32.
template <int ROWS, int CHUNK, class F>
BNB_INLINE void for_parts(int rows, i64 K, i64 ldb, const F& f) {
  for (i64 k0 = 0; k0 < K; k0 += CHUNK) {
    for (int r = 0; r < rows; r += ROWS) {
      const Part part{r, k0, columns_from<CHUNK>(k0, K)};
      const bool last = r + ROWS >= rows;
      const i64 next_k0 = last ? k0 + CHUNK : k0;
      const Part next{last ? 0 : r + ROWS, next_k0, columns_from<CHUNK>(next_k0, K)};
      f(part, next, ldb % 32 == 0 && part.columns == CHUNK && next.columns == CHUNK && next.r + ROWS <= rows);
    }
  }
}

}  // namespace bnb
