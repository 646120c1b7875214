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

// R input channels of one tile, from `row` on, and all output channels of another.
template <class Dot, int R, bool kPaired>
void gradient_rows(const PairGradientCall& c, const uint16_t* rows, const uint16_t* pairs, float* sums) {
  // From one channel to the next, and from a pair of pixels to the next.
  const int64_t row_step = kPaired ? 2 : c.row_step, pair_step = kPaired ? 2 * kGradientTile : 2;
  constexpr int kVectors = static_cast<int>(kGradientTile / Vec::kWidth);
  Vec acc[R][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j)
      acc[r][j] = c.first ? Vec::zero() : Vec::load(sums + r * kGradientTile + j * Vec::kWidth);
  for (int64_t k = 0; k < c.pixels; k += 2, rows += pair_step, pairs += 2 * kGradientTile) {
    typename Dot::Weights loaded[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) loaded[j] = Dot::load(pairs + 2 * j * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[r][j] = Dot::add(loaded[j], rows + r * row_step, acc[r][j]);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) acc[r][j].store(sums + r * kGradientTile + j * Vec::kWidth);
}

// By products of pairs in vectors.
template <class Dot>
void vector_pair_gradient(const PairGradientCall& c) {
  constexpr int kRows = Vec::kWidth >= kGradientTile ? 16 : 2;
  for (int64_t o = 0; o < c.out_tiles; ++o)
    for (int64_t i = 0; i < c.in_tiles; ++i)
      for (int64_t t = 0; t < c.taps; ++t)
        for (int64_t r = 0; r < kGradientTile; r += kRows) {
          float* const sums = sums_of(c, i, o, t) + r * kGradientTile;
          if (c.paired)
            gradient_rows<Dot, kRows, true>(c, row_pairs_of(c, i) + 2 * r, pairs_of(c, o), sums);
          else
            gradient_rows<Dot, kRows, false>(c, rows_of(c, i) + c.tap[t] + r * c.row_step, pairs_of(c, o),
                                             sums);
        }
}

}  // namespace
