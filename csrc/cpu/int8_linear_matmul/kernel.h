// The products of int8 matrices, for every instruction set: included by its file between BNB_<ISA>_BEGIN and BNB_ISA_END,
// in the unnamed namespace, after lanes_<isa>.h and
//
//   Words, kWide, kRows        a vector of so many words of 4 bytes; so many rows of A fit into the registers
//   load_words, store_words, broadcast_word, load_bytes, transpose (of kWide vectors)
//   sum_words, sum_each        of a vector; of kWide vectors, in a vector
//
// and used with an engine, which says how words of int8 are multiplied:
//
//   kParts                     vectors that a vector of B becomes
//   kOffset                    what B is larger by once it is prepared
//   prepare(x, parts)          a vector of B;  prepare_row: a vector of A, prepare_word: a word of A
//   dot(sums, b, a)            sums + the products of each word

constexpr int kVectors = 2, kColumns = kVectors * kWide;  // of a strip
constexpr int64_t kFew = 16;                              // rows of A at most that go without rearranging B

BNB_INLINE int32_t wrapping_sum(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}

// Words of a row along k, whole vectors of them.
BNB_INLINE int64_t padded_words(int64_t k) { return ceil_div(k, 4 * kWide) * kWide; }

BNB_INLINE int32_t word_at(const int8_t* row, int64_t word, int64_t k) {
  int32_t x = 0;
  if (4 * word + 4 <= k)
    __builtin_memcpy(&x, row + 4 * word, 4);  // of a size that is known: no call
  else
    __builtin_memcpy(&x, row + 4 * word, static_cast<size_t>(k - 4 * word));
  return x;
}

// What the sums of a row of A begin with, so that B may be larger by kOffset.
template <class Engine>
int32_t start_of(const int8_t* row, int64_t k) {
  if constexpr (Engine::kOffset == 0) return 0;
  int32_t sum = 0;
  for (int64_t i = 0; i < k; i++) sum += row[i];
  return static_cast<int32_t>(-Engine::kOffset * static_cast<uint32_t>(sum));
}

template <class Engine>
int64_t words_of(const Product& p) {
  return ceil_div(1 + Engine::kParts * padded_words(p.k) + p.n_columns, 16) * 16;
}

// The outliers of `count` rows as floats, those of a column side by side.
inline void pack_outliers(const Product& p, int64_t first, int64_t count, int32_t* to) {
  if (p.n_columns == 0) return;
  with_dtype(p.dtype, [&](auto zero) {
    const auto* from = static_cast<const decltype(zero)*>(p.outliers) + first * p.n_columns;
    for (int64_t r = 0; r < count; r++)
      for (int64_t j = 0; j < p.n_columns; j++) {
        const float value = to_float(from[r * p.n_columns + j]);
        __builtin_memcpy(to + j * count + r, &value, sizeof value);
      }
  });
}

// ---- strips of B ----------------------------------------------------------------------------------------------------
struct Strip {
  int64_t first, count;   // columns
  char* words;            // [words along k][kParts][kVectors] vectors
  float *outliers, *scale, *bias;  // [n_columns][kColumns], [kColumns], [kColumns]
};

inline int64_t scales_bytes(const Product& p) { return (p.n_columns + 2) * kColumns * 4; }

// A strip whose words take so many bytes of `memory`.
inline Strip strip_at(const Product& p, int64_t strip, char* memory, int64_t words_bytes) {
  Strip s;
  s.first = strip * kColumns;
  s.count = std::min<int64_t>(kColumns, p.n - s.first);
  s.words = memory;
  s.outliers = reinterpret_cast<float*>(memory + words_bytes);
  s.scale = s.outliers + p.n_columns * kColumns;
  s.bias = s.scale + kColumns;
  return s;
}

// Statistics and outlier columns of a strip.
inline void pack_scales(const Product& p, const Strip& s) {
  if (p.sums) return;
  for (int64_t c = 0; c < kColumns; c++) s.scale[c] = c < s.count ? p.col_stats[s.first + c] : 0.0f;
  for (int64_t c = 0; c < kColumns; c++) s.bias[c] = 0.0f;
  if (p.bias)
    with_dtype(p.bias_dtype, [&](auto zero) {
      const auto* bias = static_cast<const decltype(zero)*>(p.bias) + s.first;
      for (int64_t c = 0; c < s.count; c++) s.bias[c] = to_float(bias[c]);
    });
  if (p.n_columns)
    with_dtype(p.dtype, [&](auto zero) {
      for (int64_t j = 0; j < p.n_columns; j++) {
        int8_t codes[kColumns] = {};
        const int8_t* from = p.B + s.first * p.k + p.columns[j];
        for (int64_t c = 0; c < s.count; c++) codes[c] = from[c * p.k];
        for (int c = 0; c < kColumns; c += kLanes)
          store(s.outliers + j * kColumns + c, rounded<decltype(zero)>(load(codes + c) * load(s.scale + c) * broadcast(kOneBy127)));
      }
    });
}

template <class Engine>
void pack_strip(const Product& p, const Strip& s) {
  const int64_t words = padded_words(p.k);
  for (int64_t w = 0; w < words; w += kWide) {
    const int64_t bytes = p.k - 4 * w;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) {
      const int64_t here = s.count - v * kWide;
      const int8_t* from = p.B + (s.first + v * kWide) * p.k + 4 * w;
      Words x[kWide];
      if (here >= kWide && bytes >= 4 * kWide) {
#pragma GCC unroll 16
        for (int i = 0; i < kWide; i++) x[i] = load_words(from + i * p.k);
      } else {
        for (int i = 0; i < kWide; i++) x[i] = i < here ? load_bytes(from + i * p.k, bytes) : broadcast_word(0);
      }
      transpose(x);
      char* const to = s.words + w * Engine::kParts * kColumns * 4 + v * sizeof(Words);
#pragma GCC unroll 16
      for (int i = 0; i < kWide; i++) {
        Words parts[Engine::kParts];
        Engine::prepare(x[i], parts);
        for (int part = 0; part < Engine::kParts; part++)
          store_words(to + (i * Engine::kParts + part) * kVectors * sizeof(Words), parts[part]);
      }
    }
  }
  pack_scales(p, s);
}

// Fetches the rows of B that come next into the second cache, a line at a time, between the steps of a product.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0;

  Ahead(const Product& p, int64_t first_strip, int64_t last_strip) {
    const int64_t first = first_strip * kColumns, last = std::min(p.n, last_strip * kColumns);
    if (first < last) at = reinterpret_cast<const char*>(p.B + first * p.k), lines = ceil_div((last - first) * p.k, 64);
  }
  BNB_INLINE void step() {
    if (lines <= 0) return;
    __builtin_prefetch(at, 0, 2);
    lines--, at += 64;
  }
};

// ---- the end of a product --------------------------------------------------------------------------------------------
// R rows of sums [R][kColumns] into the result. outliers: [n_columns][height], of these rows.
template <int R, class T>
void scale_back(const Product& p, const int32_t* sums, int64_t row, const Strip& s, const float* outliers, int64_t height) {
  constexpr int kAcross = kColumns / kLanes;
  Lanes x[R][kAcross];
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    const Lanes row_scale = broadcast(p.row_stats[row + r]);
#pragma GCC unroll 8
    for (int c = 0; c < kAcross; c++) {
      const Lanes scaled = load(sums + r * kColumns + c * kLanes) * row_scale * load(s.scale + c * kLanes);
      x[r][c] = fused(scaled, broadcast(kMMDequant), load(s.bias + c * kLanes));
    }
  }
  for (int64_t j = 0; j < p.n_columns; j++) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const Lanes a = broadcast(outliers[j * height + r]);
#pragma GCC unroll 8
      for (int c = 0; c < kAcross; c++) x[r][c] = fused(a, load(s.outliers + j * kColumns + c * kLanes), x[r][c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; r++) {
    T* const to = static_cast<T*>(p.out) + (row + r) * p.n + s.first;
    if (s.count == kColumns) {
#pragma GCC unroll 8
      for (int c = 0; c < kAcross; c++) store(to + c * kLanes, x[r][c]);
    } else {
      T last[kColumns];
      for (int c = 0; c < kAcross; c++) store(last + c * kLanes, x[r][c]);
      __builtin_memcpy(to, last, static_cast<size_t>(s.count) * sizeof(T));
    }
  }
}

// `count` rows from `row` on.
inline void finish(const Product& p, const int32_t* sums, int64_t row, int64_t count, const Strip& s,
                   const int32_t* packed_outliers) {
  if (p.sums) {
    for (int64_t r = 0; r < count; r++)
      __builtin_memcpy(p.sums + (row + r) * p.n + s.first, sums + r * kColumns, static_cast<size_t>(s.count) * 4);
    return;
  }
  const auto* outliers = reinterpret_cast<const float*>(packed_outliers);
  with_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) scale_back<4, T>(p, sums + r * kColumns, row + r, s, outliers + r, count);
    for (; r < count; r++) scale_back<1, T>(p, sums + r * kColumns, row + r, s, outliers + r, count);
  });
}

// ---- blocks of rows --------------------------------------------------------------------------------------------------
// A block: what the sums begin with [height], words [words along k][kParts][height], outliers [n_columns][height].
template <class Engine>
struct Blocks {
  // Strips that are rearranged at a time: they stay in the second cache, and so does what is fetched for the next ones.
  static constexpr int64_t kGroupBytes = 320 << 10;

  static void pack(const Product& p, const PackedRows& rows, int64_t first_block, int64_t last_block) {
    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t first = rows.first + block * rows.height, height = std::min(rows.height, rows.last - first);
      int32_t* const packed = rows.data + block * rows.height * rows.words;
      const int64_t words = ceil_div(p.k, 4);
      const int8_t* const rows_of_A = p.A + first * p.k;
      for (int64_t r = 0; r < height; r++) packed[r] = start_of<Engine>(rows_of_A + r * p.k, p.k);
      int32_t* to = packed + height;
      for (int64_t w = 0; w < words; w++, to += Engine::kParts * height)
        for (int64_t r = 0; r < height; r++) {
          int32_t parts[Engine::kParts];
          Engine::prepare_word(word_at(rows_of_A + r * p.k, w, p.k), parts);
          for (int part = 0; part < Engine::kParts; part++) to[part * height + r] = parts[part];
        }
      pack_outliers(p, first, height, packed + height * (1 + words * Engine::kParts));
    }
  }

  // H rows by a strip: sums [H][kColumns]. `fetch` lines ahead every fourth step.
  template <int H>
  static void tile(const int32_t* packed, const char* strip, int64_t steps, int32_t* sums, Ahead& ahead, int fetch) {
    Words x[H][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < H; r++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) x[r][v] = broadcast_word(packed[r]);
    const int32_t* a = packed + H;
    const auto step = [&]() __attribute__((always_inline)) {
      Words b[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) b[v] = load_words(strip + v * sizeof(Words));
#pragma GCC unroll 16
      for (int r = 0; r < H; r++) {
        const Words word = broadcast_word(a[r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) x[r][v] = Engine::dot(x[r][v], b[v], word);
      }
      a += H, strip += kVectors * sizeof(Words);
    };
    int64_t i = 0;
    for (; i + 4 <= steps; i += 4) {
      for (int f = 0; f < fetch; f++) ahead.step();
      step(), step(), step(), step();
    }
    for (; i < steps; i++) step();
#pragma GCC unroll 16
    for (int r = 0; r < H; r++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) store_words(sums + r * kColumns + v * kWide, x[r][v]);
  }

  using Tile = void (*)(const int32_t*, const char*, int64_t, int32_t*, Ahead&, int);
  template <int... H>
  static constexpr std::array<Tile, kRows> tiles(std::integer_sequence<int, H...>) {
    return {&tile<H + 1>...};
  }

  // Sums [height][kColumns]; the outliers' place. calls: so many blocks are left for what is fetched ahead.
  static const int32_t* block(const Product& p, const int32_t* packed, int64_t height, const Strip& s, int32_t* sums, Ahead& ahead,
                              int64_t calls) {
    static constexpr auto kTiles = tiles(std::make_integer_sequence<int, kRows>());
    const int64_t steps = ceil_div(p.k, 4) * Engine::kParts;
    const int fetch = ahead.lines > 0 ? static_cast<int>(ceil_div(ahead.lines, std::max<int64_t>(1, calls * (steps / 4)))) : 0;
    kTiles[height - 1](packed, s.words, steps, sums, ahead, fetch);
    return packed + height * (1 + steps);
  }
};

template <class Engine>
bool run(const Product& p, const PackedRows& rows, int64_t first_block, int64_t last_block, int64_t first_strip,
         int64_t last_strip) {
  const int64_t words_bytes = padded_words(p.k) * Engine::kParts * kColumns * 4, bytes = words_bytes + scales_bytes(p);
  const int64_t group = std::min(last_strip - first_strip, std::max<int64_t>(1, Blocks<Engine>::kGroupBytes / bytes));
  auto* const memory = static_cast<char*>(thread_memory(Use::strips, group * bytes));
  if (!memory) return false;
  alignas(64) int32_t sums[kRows * kColumns];
  for (int64_t first = first_strip; first < last_strip; first += group) {
    const int64_t last = std::min(last_strip, first + group);
    for (int64_t strip = first; strip < last; strip++)
      pack_strip<Engine>(p, strip_at(p, strip, memory + (strip - first) * bytes, words_bytes));
    Ahead ahead(p, last, std::min(last_strip, last + group));
    int64_t calls = (last_block - first_block) * (last - first);
    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t row = rows.first + block * rows.height, height = std::min(rows.height, rows.last - row);
      const int32_t* const packed = rows.data + block * rows.height * rows.words;
      for (int64_t strip = first; strip < last; strip++) {
        const Strip s = strip_at(p, strip, memory + (strip - first) * bytes, words_bytes);
        const int32_t* const outliers = Blocks<Engine>::block(p, packed, height, s, sums, ahead, calls--);
        finish(p, sums, row, height, s, outliers);
      }
    }
  }
  return true;
}

// ---- few rows --------------------------------------------------------------------------------------------------------
// B goes from memory straight into the products, each word of its rows times the same words of A's rows. In blocks of A's
// rows and parts of kChunk bytes along k, which stay in the first cache while the rows of a strip of B pass over them.
constexpr int kFewHeight = kWide == 16 ? 8 : 4;  // rows of A at a time at most
constexpr int kTogether = 2;                     // rows of B at a time

template <class Engine>
constexpr int64_t kChunk = (32 << 10) / (kFewHeight * Engine::kParts);

// Blocks of rows that differ by one at most in height.
struct FewBlocks {
  int64_t count, height;
  explicit FewBlocks(int64_t m) : count(ceil_div(m, kFewHeight)), height(ceil_div(m, count)) {}
};

// What the sums of each row begin with, 16 words at least. Of each part along k and each block there
// [vectors along k][kParts][height] vectors; then the outliers of all rows.
inline int64_t few_words_begin(const Product& p) { return ceil_div(p.m, 16) * 16; }

template <class Engine>
void pack_few(const Product& p, int32_t* packed) {
  const FewBlocks blocks(p.m);
  int32_t* to = packed + few_words_begin(p);
  for (int64_t r = 0; r < p.m; r++) packed[r] = 0;
  for (int64_t from = 0; from < p.k; from += kChunk<Engine>) {
    const int64_t until = std::min(p.k, from + kChunk<Engine>);
    for (int64_t first = 0; first < p.m; first += blocks.height) {
      const int64_t height = std::min(blocks.height, p.m - first), steps = ceil_div(until - from, 4 * kWide);
      for (int64_t r = 0; r < height; r++) {
        const int8_t* const row = p.A + (first + r) * p.k + from;
        Words sum = broadcast_word(0);
        for (int64_t i = 0; i < steps; i++) {
          Words parts[Engine::kParts];
          Engine::prepare_row(load_bytes(row + i * 4 * kWide, until - from - i * 4 * kWide), parts);
          for (int part = 0; part < Engine::kParts; part++)
            store_words(to + ((i * Engine::kParts + part) * height + r) * kWide, parts[part]);
          if constexpr (Engine::kOffset != 0) sum = Engine::dot(sum, broadcast_word(0x01010101), parts[0]);
        }
        packed[first + r] -= Engine::kOffset * static_cast<uint32_t>(sum_words(sum));
      }
      to += height * steps * Engine::kParts * kWide;
    }
  }
  pack_outliers(p, 0, p.m, to);
}

// Adds to sums[H][kColumns] of two rows of B (`second` says whether the other counts) of k bytes. What comes later is
// fetched meanwhile, from two places on: near, for the first cache, or far, for the second.
template <class Engine, int H, bool NEAR>
void few_tile(const int32_t* a, const int8_t* first, const int8_t* second, int64_t k, const int8_t* fetch, const int8_t* other,
              int32_t* sums, bool both) {
  constexpr int kSums = H * kTogether, kVectorsOfSums = (kSums + kWide - 1) / kWide;
  Words x[kVectorsOfSums * kWide];
#pragma GCC unroll 32
  for (int i = 0; i < kVectorsOfSums * kWide; i++) x[i] = broadcast_word(0);
  const auto step = [&](Words one, Words two) __attribute__((always_inline)) {
    Words b[kTogether][Engine::kParts];
    Engine::prepare(one, b[0]);
    Engine::prepare(two, b[1]);
#pragma GCC unroll 2
    for (int part = 0; part < Engine::kParts; part++)
#pragma GCC unroll 8
      for (int r = 0; r < H; r++, a += kWide) {
        const Words word = load_words(a);
#pragma GCC unroll 2
        for (int c = 0; c < kTogether; c++) x[r * kTogether + c] = Engine::dot(x[r * kTogether + c], b[c][part], word);
      }
  };
  int64_t at = 0;
  for (; at + 4 * kWide <= k; at += 4 * kWide) {
    __builtin_prefetch(fetch + at, 0, NEAR ? 3 : 2);
    __builtin_prefetch(other + at, 0, NEAR ? 3 : 2);
    step(load_words(first + at), load_words(second + at));
  }
  if (at < k) step(load_bytes(first + at, k - at), load_bytes(second + at, k - at));
  alignas(64) int32_t all[kVectorsOfSums * kWide];
#pragma GCC unroll 4
  for (int i = 0; i < kVectorsOfSums; i++) {
    Words each[kWide];
#pragma GCC unroll 16
    for (int j = 0; j < kWide; j++) each[j] = x[i * kWide + j];
    store_words(all + i * kWide, sum_each(each));
  }
#pragma GCC unroll 8
  for (int r = 0; r < H; r++) {
    sums[r * kColumns] = wrapping_sum(sums[r * kColumns], all[r * kTogether]);
    if (both) sums[r * kColumns + 1] = wrapping_sum(sums[r * kColumns + 1], all[r * kTogether + 1]);
  }
}

// How far ahead of a row of B its memory is fetched. Rows follow each other, and so do the fetches.
constexpr int64_t kFetchAhead = 4096;

// sums[0] of one row of A by one row of B: along a single stream, since nothing but memory counts.
template <class Engine>
void one_row(const Product& p, const int32_t* packed, const int8_t* B, int32_t* sums) {
  constexpr int kChains = 4;
  const int32_t* const a = packed + few_words_begin(p);
  Words x[kChains];
#pragma GCC unroll 4
  for (int i = 0; i < kChains; i++) x[i] = broadcast_word(0);
  const auto step = [&](int64_t w, Words bytes, Words& sum) __attribute__((always_inline)) {
    Words b[Engine::kParts];
    Engine::prepare(bytes, b);
#pragma GCC unroll 2
    for (int part = 0; part < Engine::kParts; part++)
      sum = Engine::dot(sum, b[part], load_words(a + w * Engine::kParts + part * kWide));
  };
  int64_t w = 0;
  for (; 4 * (w + kChains * kWide) <= p.k; w += kChains * kWide) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; i++) {
      if (i * kWide % 16 == 0) __builtin_prefetch(B + 4 * (w + i * kWide) + kFetchAhead, 0, 3);
      step(w + i * kWide, load_words(B + 4 * (w + i * kWide)), x[i]);
    }
  }
  for (; 4 * w < p.k; w += kWide) step(w, load_bytes(B + 4 * w, p.k - 4 * w), x[0]);
  auto sum = static_cast<uint32_t>(packed[0]);
  for (int i = 0; i < kChains; i++) sum += static_cast<uint32_t>(sum_words(x[i]));
  *sums = static_cast<int32_t>(sum);
}

template <class Engine, bool NEAR, int... H>
constexpr auto few_tiles(std::integer_sequence<int, H...>) {
  return std::array{&few_tile<Engine, H + 1, NEAR>...};
}

// Sums [m][kColumns] of a strip. The rows of B from `fetch` on are fetched meanwhile.
template <class Engine>
void few_strip(const Product& p, const int32_t* packed, const Strip& s, const int8_t* fetch, int32_t* sums) {
  static constexpr auto kNear = few_tiles<Engine, true>(std::make_integer_sequence<int, kFewHeight>());
  static constexpr auto kFar = few_tiles<Engine, false>(std::make_integer_sequence<int, kFewHeight>());
  const FewBlocks blocks(p.m);
  for (int64_t r = 0; r < p.m; r++)
    for (int c = 0; c < kColumns; c++) sums[r * kColumns + c] = packed[r];
  const int32_t* a = packed + few_words_begin(p);
  for (int64_t from = 0; from < p.k; from += kChunk<Engine>) {
    const int64_t bytes = std::min(p.k - from, kChunk<Engine>);
    for (int64_t row = 0; row < p.m; row += blocks.height) {
      const int64_t height = std::min(blocks.height, p.m - row);
      for (int64_t c = 0; c < s.count; c += kTogether) {
        const bool both = c + 1 < s.count;
        const int8_t *const first = p.B + (s.first + c) * p.k + from, *const second = both ? first + p.k : first;
        int32_t* const to = sums + row * kColumns + c;
        if (blocks.count == 1) {
          kNear[height - 1](a, first, second, bytes, first + kTogether * p.k, second + kTogether * p.k, to, both);
        } else {  // the first two blocks share the fetches
          const int64_t block = row / blocks.height;
          const int8_t* const next = block < 2 ? fetch + (c + block) * p.k + from : first;
          kFar[height - 1](a, first, second, bytes, next, next, to, both);
        }
      }
      a += height * ceil_div(bytes, 4 * kWide) * Engine::kParts * kWide;
    }
  }
}

template <class Engine>
bool run_few(const Product& p, const int32_t* packed, int64_t first_strip, int64_t last_strip) {
  auto* const memory = static_cast<char*>(thread_memory(Use::strips, scales_bytes(p)));
  if (!memory) return false;
  alignas(64) int32_t sums[kFew * kColumns];
  const int32_t* const outliers = packed + few_words_begin(p) + p.m * Engine::kParts * padded_words(p.k);
  for (int64_t strip = first_strip; strip < last_strip; strip++) {
    const Strip s = strip_at(p, strip, memory, 0);
    if (p.m == 1) {
      for (int64_t c = 0; c < s.count; c++) one_row<Engine>(p, packed, p.B + (s.first + c) * p.k, sums + c);
    } else {
      const int64_t next = strip + 1 < last_strip ? kColumns : 0;
      few_strip<Engine>(p, packed, s, p.B + (s.first + next) * p.k, sums);
    }
    pack_scales(p, s);
    finish(p, sums, 0, p.m, s, outliers);
  }
  return true;
}

template <class Engine>
constexpr ProductKernels kernels_of(int64_t few = kFew) {
  return {kRows, 1, kColumns, few, &words_of<Engine>, &Blocks<Engine>::pack, &run<Engine>, &pack_few<Engine>, &run_few<Engine>};
}
