// Products of bfloat16 tiles: after avx512.h, amx.h and bfloat16.h, inside the region of AMX.

// A row of a left tile holds kStep elements of K; a right one's has two of each of 16 columns.
constexpr int kStep = 32;

// {left part, right part} of the products that are not too small to matter, which are summed up in float32, the smallest first.
template <int PARTS>
constexpr auto kProducts = nullptr;
template <>
constexpr int kProducts<1>[][2] = {{0, 0}};
template <>
constexpr int kProducts<2>[][2] = {{0, 1}, {1, 0}, {0, 0}};

// 32 elements of a row of A, of which those before `count` are there.
template <int PARTS>
void load_parts(const bfloat16* in, int64_t count, __m512i (&part)[PARTS]) {
  static_assert(PARTS == 1);
  part[0] = _mm512_maskz_loadu_epi16(first_words(count), in);
}
template <int PARTS, class T>
void load_parts(const T* in, int64_t count, __m512i (&part)[PARTS]) {
  __m256i low[PARTS], high[PARTS];
  split(load(in, first_lanes(std::max<int64_t>(0, count))), low);
  split(load(in + 16, first_lanes(std::max<int64_t>(0, count - 16))), high);
#pragma GCC unroll 2
  for (int i = 0; i < PARTS; i++) part[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low[i]), high[i], 1);
}

constexpr int kTile = kRows * kPanel;
// Elements of K that are multiplied at a time: 32 rows of A and two panels stay in the first cache together. Of more parts they do
// not, and sums are begun anew each time.
template <int PARTS>
constexpr int64_t kAtOnce = PARTS == 1 ? 256 : kPart;
// Lines that are fetched of the next rows of A in each step of K: as many as 32 rows have, where they meet all panels.
template <int PARTS>
constexpr int kFetched = PARTS == 1 ? 4 : 3;

// A tile, or two side by side. Bytes from one step of K to the next, from the first to the second, and from part to part.
struct Operand {
  const char* tile;
  int64_t step, second, part;
};

// Sums in tiles 0 to 3, the left operand in 4 and 5, the right one in 6 and 7. Rows of C are c_stride floats apart. Lines from
// `fetch` on are fetched meanwhile; returns where it got to.
template <int PARTS, int LEFTS, int RIGHTS>
const char* tiles_of(const Operand& left, const Operand& right, int64_t k, const char* fetch, float* const (&c)[2][2],
                     int64_t c_stride) {
  alignas(64) float sums[2][2][kTile];  // from 0 on: a chain of all K would lose what parts are for
  const auto at = [&](int l, int r) { return PARTS == 1 ? c[l][r] : sums[l][r]; };
  const int64_t bytes = PARTS == 1 ? c_stride * 4 : 64;
  asm volatile("" ::: "memory");  // the intrinsics do not say what they read and write
  if constexpr (PARTS == 1) {
    _tile_loadd(0, at(0, 0), bytes);
    if constexpr (LEFTS == 2) _tile_loadd(1, at(1, 0), bytes);
    if constexpr (RIGHTS == 2) _tile_loadd(2, at(0, 1), bytes);
    if constexpr (LEFTS == 2 && RIGHTS == 2) _tile_loadd(3, at(1, 1), bytes);
  } else {
    _tile_zero(0);
    if constexpr (LEFTS == 2) _tile_zero(1);
    if constexpr (RIGHTS == 2) _tile_zero(2);
    if constexpr (LEFTS == 2 && RIGHTS == 2) _tile_zero(3);
  }
  for (const auto& [of_left, of_right] : kProducts<PARTS>) {
    const char* x = left.tile + of_left * left.part;
    const char* y = right.tile + of_right * right.part;
    for (int64_t j = 0; j < k; j += kStep, x += left.step, y += right.step) {
#pragma GCC unroll 4
      for (int line = 0; line < kFetched<PARTS>; line++, fetch += 64) _mm_prefetch(fetch, _MM_HINT_T1);
      _tile_loadd(4, x, 64);
      _tile_loadd(6, y, 64);
      if constexpr (LEFTS == 2) _tile_loadd(5, x + left.second, 64);
      if constexpr (RIGHTS == 2) _tile_loadd(7, y + right.second, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (LEFTS == 2) _tile_dpbf16ps(1, 5, 6);
      if constexpr (RIGHTS == 2) _tile_dpbf16ps(2, 4, 7);
      if constexpr (LEFTS == 2 && RIGHTS == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, at(0, 0), bytes);
  if constexpr (LEFTS == 2) _tile_stored(1, at(1, 0), bytes);
  if constexpr (RIGHTS == 2) _tile_stored(2, at(0, 1), bytes);
  if constexpr (LEFTS == 2 && RIGHTS == 2) _tile_stored(3, at(1, 1), bytes);
  asm volatile("" ::: "memory");
  if constexpr (PARTS > 1)
    for (int l = 0; l < LEFTS; l++)
      for (int r = 0; r < RIGHTS; r++)
        for (int j = 0; j < 16; j++) {
          float* const to = c[l][r] + j * c_stride;
          _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), _mm512_load_ps(sums[l][r] + 16 * j)));
        }
  return fetch;
}

// Panels are the left operand, or the right one of a transposed product.
template <int PARTS, bool TRANSPOSED>
void multiply(const void* tile, const void* next, int64_t height, const void* panels, int64_t stride, int64_t count, int64_t k,
              int64_t, float* C) {
  constexpr decltype(&tiles_of<PARTS, 1, 1>) kTilesOf[2][2] = {{&tiles_of<PARTS, 1, 1>, &tiles_of<PARTS, 1, 2>},
                                                               {&tiles_of<PARTS, 2, 1>, &tiles_of<PARTS, 2, 2>}};
  Operand rows{static_cast<const char*>(tile), height * 64, kTileBytes, k / kStep * height * 64};
  Operand panel{nullptr, kTileBytes, stride, k / kStep * kTileBytes};
  const char* b = static_cast<const char*>(panels);
  const char* fetch = static_cast<const char*>(next);
  const int64_t width = count * kPanel;
  const bool two_rows = height > kRows;
  for (int64_t from = 0; from < k; from += kAtOnce<PARTS>) {
    const int64_t these = std::min(kAtOnce<PARTS>, k - from);
    for (int64_t i = 0; i < count; i += 2) {
      const bool two_panels = i + 1 < count;
      panel.tile = b + i * stride;
      if constexpr (TRANSPOSED) {
        float* const c = C + i * kPanel;
        float* const below = c + kRows * width;
        fetch = kTilesOf[two_rows][two_panels](rows, panel, these, fetch, {{c, c + kPanel}, {below, below + kPanel}}, width);
      } else {
        float* const c = C + i * kTile;
        float* const below = c + kRows * width;
        fetch = kTilesOf[two_panels][two_rows](panel, rows, these, fetch, {{c, below}, {c + kTile, below + kTile}}, kRows);
      }
    }
    rows.tile += these / kStep * rows.step;
    b += these / kStep * kTileBytes;
  }
}
