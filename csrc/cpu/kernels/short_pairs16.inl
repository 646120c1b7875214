// Dot products with pairs in 12 bits a value (cpu/short_pairs.h). Part of conv16.inl.

// So far ahead of the products a panel's bytes are asked for.
constexpr int64_t kShortAhead = 1 << 15;
constexpr int64_t kShortPairs = kShortGroup / kHalfPanel / 2;  // of a group
constexpr int64_t kCodedBytes = kShortBlock / kShortGroup * kShortGroupBytes;

// Where a panel's blocks lie.
struct ShortPanel {
  ShortPanel(const Conv16Call& c, int64_t panel)
      : exponents(reinterpret_cast<const uint8_t*>(c.weight) +
                  reinterpret_cast<const int64_t*>(c.weight)[panel]),
        stored(exponents + 2 * kShortExponents),
        blocks(exponents + (2 * kShortExponents + padded_depth(c) / kPairBlock + kShortLine - 1) /
                               kShortLine * kShortLine) {}
  const uint8_t *exponents, *stored, *blocks;
};

// R pixels of H halves of a panel that has `halves`, from half `first` on: as dot_block.
template <class Dot, int H, int R>
void short_block(const Conv16Call& c, const typename Dot::Operand* x, int64_t step, const OutputPixel* pixels,
                 const ShortPanel& panel, int64_t halves, int64_t first, int64_t channel) {
  constexpr int kPerHalf = static_cast<int>(kHalfPanel / Vec::kWidth), NV = H * kPerHalf;
  const Exponents exponents(panel.exponents);
  const uint8_t* at = panel.blocks;
  Vec acc[R * NV];
  start_block<R, NV>(c, acc, channel);
  // Products of one pair of positions; weights: its channels, half by half.
  const auto add_pair = [&](const uint16_t* const* weights, const typename Dot::Operand* pair) {
    typename Dot::Weights loaded[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      loaded[j] = Dot::load(weights[j / kPerHalf] + j % kPerHalf * 2 * Vec::kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r * NV + j] = Dot::add(loaded[j], pair + r * step, acc[r * NV + j]);
  };
  for (int64_t k = 0; k < padded_depth(c); k += kPairBlock) {
    const bool stored = panel.stored[k / kPairBlock];
    const int64_t half_bytes = stored ? 2 * kShortBlock : kCodedBytes;
    const uint8_t* from = at + first * half_bytes;
    for (int64_t i = 0; i < H * kCodedBytes; i += kShortLine)
      __builtin_prefetch(from + kShortAhead + i, 0, 2);
    at += halves * half_bytes;
    if (stored) {
      for (int64_t p = 0; p < kPairBlock / 2; ++p) {
        const uint16_t* weights[H];
        for (int h = 0; h < H; ++h)
          weights[h] = reinterpret_cast<const uint16_t*>(from + h * half_bytes) + p * 2 * kHalfPanel;
        add_pair(weights, x + k + 2 * p);
      }
      continue;
    }
#pragma GCC unroll 4
    for (int64_t group = 0; group < kShortBlock / kShortGroup; ++group) {
      alignas(64) uint16_t whole[H][kShortGroup];
      for (int h = 0; h < H; ++h)
        exponents.lengthen(from + h * kCodedBytes + group * kShortGroupBytes, whole[h]);
#pragma GCC unroll 4
      for (int64_t p = 0; p < kShortPairs; ++p) {
        const uint16_t* weights[H];
        for (int h = 0; h < H; ++h) weights[h] = whole[h] + p * 2 * kHalfPanel;
        add_pair(weights, x + k + 2 * (group * kShortPairs + p));
      }
    }
  }
  finish_block<R, NV>(c, acc, pixels, channel);
}

template <class Dot, int H, int R = kShortPixels>
void short_block_of(int64_t count, const Conv16Call& c, const typename Dot::Operand* x, int64_t step,
                    const OutputPixel* pixels, const ShortPanel& panel, int64_t halves, int64_t first,
                    int64_t channel) {
  if constexpr (R > 1) {
    if (count < R)
      return short_block_of<Dot, H, R - 1>(count, c, x, step, pixels, panel, halves, first, channel);
  }
  short_block<Dot, H, R>(c, x, step, pixels, panel, halves, first, channel);
}

// As dot_panel; more pixels than a register block holds come one block after the other.
template <class Dot>
void short_panel(const Conv16Call& c, const BlockValues<typename Dot::Operand>& x, const OutputPixel* pixels,
                 int64_t count, int64_t panel, int64_t halves) {
  const ShortPanel where(c, panel);
  const int64_t channel = panel * kPanelChannels, together = halves == 2 && kDotHalves == 2 ? 2 : 1;
  for (int64_t p = 0; p < count; p += kShortPixels) {
    const int64_t n = count - p < kShortPixels ? count - p : kShortPixels;
    const auto* values = x.first + p * x.step;
    for (int64_t first = 0; first < halves; first += together)
      (together == 2 ? short_block_of<Dot, kDotHalves>
                     : short_block_of<Dot, 1>)(n, c, values, x.step, pixels + p, where, halves, first,
                                               channel + first * kHalfPanel);
  }
}
