// Gradients of weights by products of pairs: sums over pixels, so that a pair is two pixels that follow one
// another. The input lies channel by channel, pixels in a row, and a kernel's tap is a distance along that
// row; the output's gradient lies as weights do in conv16.inl, pixels in the place of positions.
namespace {

constexpr int64_t kSumTile = kGradientTile * kGradientTile;

// Sums of one tile of input channels and one of output channels, at one tap.
inline float* sums_of(const PairGradientCall& c, int64_t in_tile, int64_t out_tile, int64_t tap) {
  return c.sums + out_tile * c.out_step + (in_tile * c.taps + tap) * kSumTile;
}
inline const uint16_t* rows_of(const PairGradientCall& c, int64_t in_tile) {
  return c.rows + in_tile * kGradientTile * c.row_step;
}
inline const uint16_t* row_pairs_of(const PairGradientCall& c, int64_t in_tile) {
  return c.rows + in_tile * kGradientTile * c.pixels;
}
inline const uint16_t* pairs_of(const PairGradientCall& c, int64_t out_tile) {
  return c.pairs + out_tile * kGradientTile * c.pixels;
}

inline void transpose_pixels(const uint16_t* const* pixels, int64_t channels, uint16_t* rows,
                             int64_t row_step) {
  for (int64_t i = 0; i < channels; i += kGradientTile)
    Pairs::transpose(pixels, i, channels - i < kGradientTile ? channels - i : kGradientTile,
                     rows + i * row_step, row_step);
}

inline void interleave_pixels(const uint16_t* const* pixels, int64_t channels, uint16_t* pairs,
                              int64_t tile_step) {
  for (int64_t i = 0; i < channels; i += kGradientTile, pairs += tile_step)
    Pairs::interleave(pixels, i, channels - i < kGradientTile ? channels - i : kGradientTile, pairs);
}

// R input channels of one tile, from `rows` on, and all output channels of another, at T taps: `tap` says
// where their rows lie, and their sums follow one another by tiles.
template <class Dot, int R, int T, bool kPaired>
void gradient_rows(const PairGradientCall& c, const uint16_t* rows, const int64_t* tap, const uint16_t* pairs,
                   float* sums) {
  // From one channel to the next, and from a pair of pixels to the next.
  const int64_t row_step = kPaired ? 2 : c.row_step, pair_step = kPaired ? 2 * kGradientTile : 2;
  constexpr int kVectors = static_cast<int>(kGradientTile / Vec::kWidth);
  Vec acc[T][R][kVectors];
  const uint16_t* row[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    row[t] = rows + tap[t];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        acc[t][r][j] =
            c.first ? Vec::zero() : Vec::load(sums + t * kSumTile + r * kGradientTile + j * Vec::kWidth);
  }
  for (int64_t k = 0; k < c.pixels; k += 2, pairs += 2 * kGradientTile) {
    typename Dot::Weights loaded[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) loaded[j] = Dot::load(pairs + 2 * j * Vec::kWidth);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; ++j)
          acc[t][r][j] = Dot::add(loaded[j], row[t] + r * row_step, acc[t][r][j]);
      row[t] += pair_step;
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j)
        acc[t][r][j].store(sums + t * kSumTile + r * kGradientTile + j * Vec::kWidth);
}

// The taps of two tiles, T at a time, R rows from `row` on.
template <class Dot, int R, int T, bool kPaired>
void gradient_taps(const PairGradientCall& c, int64_t in_tile, int64_t out_tile, int64_t row) {
  const uint16_t* const rows =
      kPaired ? row_pairs_of(c, in_tile) + 2 * row : rows_of(c, in_tile) + row * c.row_step;
  const uint16_t* const pairs = pairs_of(c, out_tile);
  static constexpr int64_t kNoDistance[1] = {0};
  int64_t t = 0;
  for (; t + T <= c.taps; t += T)
    gradient_rows<Dot, R, T, kPaired>(c, rows, kPaired ? kNoDistance : c.tap + t, pairs,
                                      sums_of(c, in_tile, out_tile, t) + row * kGradientTile);
  if constexpr (T > 1)
    for (; t < c.taps; ++t)
      gradient_rows<Dot, R, 1, kPaired>(c, rows, c.tap + t, pairs,
                                        sums_of(c, in_tile, out_tile, t) + row * kGradientTile);
}

// Registers that hold a vector of a tile's output channels take all rows of a tile; of few channels, which a
// last tile may have, those of several taps.
template <class Dot, bool kPaired>
void gradient_tile(const PairGradientCall& c, int64_t in_tile, int64_t out_tile) {
  const int64_t left = c.channels - in_tile * kGradientTile;
  if constexpr (Vec::kWidth < kGradientTile) {
    for (int64_t r = 0; r < kGradientTile && r < left; r += 2)
      gradient_taps<Dot, 2, 1, kPaired>(c, in_tile, out_tile, r);
  } else if (left > 12) {
    gradient_taps<Dot, 16, 1, kPaired>(c, in_tile, out_tile, 0);
  } else if (left > 8) {
    gradient_taps<Dot, 12, 1, kPaired>(c, in_tile, out_tile, 0);
  } else if (left > 4) {
    gradient_taps<Dot, 8, kPaired ? 1 : 2, kPaired>(c, in_tile, out_tile, 0);
  } else {
    gradient_taps<Dot, 4, kPaired ? 1 : 4, kPaired>(c, in_tile, out_tile, 0);
  }
}

// By products of pairs in vectors.
template <class Dot>
void vector_pair_gradient(const PairGradientCall& c) {
  for (int64_t o = 0; o < c.out_tiles; ++o)
    for (int64_t i = 0; i < c.in_tiles; ++i)
      c.paired ? gradient_tile<Dot, true>(c, i, o) : gradient_tile<Dot, false>(c, i, o);
}

}  // namespace
