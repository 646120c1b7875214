// Direct convolution of bfloat16 values with packed bfloat16 weights, float32 sums, one rounding. The values
// of a block of pixels are gathered in the order of the dot product first, once for all output channels: no
// alignment, no remainder of a stretch and no border then concerns the inner loop. Where the values of pixels
// lie in that order already, short dot products read them there.
//
// Products are those of `Dot`: a vector instruction, or float32 multiply-adds of widened values.
namespace {

// Widened values and float32 multiply-adds.
struct WidenedDot {
  using Operand = float;
  static constexpr bool kAsStored = false;  // its operands are not the values in memory
  static constexpr int64_t kNarrow = 0;     // no products of few channels by a part of a vector
  static void gather(const uint16_t* from, int64_t count, float* to) {
    int64_t i = 0;
    for (; i + Vec::kWidth <= count; i += Vec::kWidth) Bf16::load(from + i).store(to + i);
    if (i < count) Bf16::load_first(from + i, count - i).store_first(to + i, count - i);
  }
  struct Weights {
    Vec even, odd;
  };
  static Weights load(const uint16_t* pairs) {
    Weights w;
    Bf16::load_pairs(pairs, w.even, w.odd);
    return w;
  }
  static Vec add(const Weights& w, const float* pair, Vec acc) {
    return Vec::fma(Vec::set1(pair[0]), w.even, Vec::fma(Vec::set1(pair[1]), w.odd, acc));
  }
};

// Where an output pixel lies.
struct OutputPixel {
  const uint16_t* input;
  uint16_t* output;
  const uint16_t* residual;
};

// Walks over output pixels in memory order.
class Pixel16Walk {
 public:
  Pixel16Walk(const Conv16Call& c, int64_t pixel) : c_(c) {
    const int64_t row = pixel / c.width;
    x_ = pixel % c.width;
    y_ = row % c.height;
    n_ = row / c.height;
    locate();
  }
  const OutputPixel& here() const { return here_; }
  // The next `count` pixels.
  void take(int64_t count, OutputPixel* to) {
    for (int64_t taken = 0; taken < count; step()) {
      // All of this row but the last one: stepping from there may lead to the next row.
      const int64_t in_row = c_.width - 1 - x_, left = count - taken;
      const int64_t run = in_row < left ? in_row : left;
      OutputPixel pixel = here_;
      const int64_t in = c_.stride_w * c_.input.pixel, out = c_.output.pixel,
                    residual = pixel.residual ? c_.residual.pixel : 0;
      for (int64_t i = 0; i < run; ++i) {
        to[taken + i] = pixel;
        pixel = {pixel.input + in, pixel.output + out, pixel.residual + residual};
      }
      taken += run;
      x_ += run;
      here_ = pixel;
      if (taken == count) return;
      to[taken++] = pixel;
    }
  }
  void step() {
    if (++x_ < c_.width) {
      here_.input += c_.stride_w * c_.input.pixel;
      here_.output += c_.output.pixel;
      if (here_.residual) here_.residual += c_.residual.pixel;
      return;
    }
    x_ = 0;
    if (++y_ == c_.height) {
      y_ = 0;
      if (++n_ == c_.images) return;  // past the end: nothing may be formed from it
    }
    locate();
  }

 private:
  uint16_t* at(const View16& v) const { return v.data + n_ * v.image + y_ * v.row + x_ * v.pixel; }
  void locate() {
    here_ = {c_.input.data + n_ * c_.input.image + y_ * c_.stride_h * c_.input.row +
                 x_ * c_.stride_w * c_.input.pixel,
             at(c_.output), c_.residual.data ? at(c_.residual) : nullptr};
  }

  const Conv16Call& c_;
  int64_t n_, y_, x_;
  OutputPixel here_;
};

inline int64_t depth_of(const Conv16Call& c) { return c.taps * c.length; }
inline int64_t padded_depth(const Conv16Call& c) {
  return (depth_of(c) + kPairBlock - 1) / kPairBlock * kPairBlock;
}
// From one gathered pixel to the next: those of a register block at multiples of 1 KiB would share a few sets
// of the first-level cache.
inline int64_t gathered_step(const Conv16Call& c) {
  const int64_t depth = padded_depth(c);
  return depth % 512 ? depth : depth + kPairBlock;
}

inline Vec with_residual(Vec sum, const OutputPixel& pixel, int64_t channel, int64_t lanes) {
  const uint16_t* residual = pixel.residual + channel;
  return sum + (lanes >= Vec::kWidth ? Bf16::load(residual) : Bf16::load_first(residual, lanes));
}

// What stands between a sum and its activation, for channels [channel, channel + lanes).
inline Vec shifted_sum(const Conv16Call& c, Vec sum, const OutputPixel& pixel, int64_t channel,
                       int64_t lanes) {
  if (c.shift) sum = sum + Vec::load(c.shift + channel);
  return pixel.residual ? with_residual(sum, pixel, channel, lanes) : sum;
}
inline void store_vector(Vec sum, const OutputPixel& pixel, int64_t channel, int64_t lanes) {
  lanes >= Vec::kWidth ? Bf16::store_sum(sum, pixel.output + channel)
                       : Bf16::store_first(sum, pixel.output + channel, lanes);
}

inline void finish_vector(const Conv16Call& c, Vec sum, const OutputPixel& pixel, int64_t channel,
                          int64_t lanes) {
  store_vector(apply_sum(c.activation, shifted_sum(c, sum, pixel, channel, lanes)), pixel, channel, lanes);
}

// Weights that do not stay in the second-level cache beside the pixels they meet are asked for so many values
// ahead of the products: memory would rest while a block multiplies. Those of very few pixels come at
// memory's pace, faster if asked for a whole block at a time.
constexpr int64_t kResidentValues = 1 << 17, kAheadValues = 1 << 12, kFarAheadValues = 1 << 14;
constexpr int64_t kStreamPixels = 2, kLineValues = 32;

// Values of pixels that stay in the first-level cache for all panels, and weights that do so beside them;
// whole register blocks of 12 or 8 pixels.
constexpr int64_t kNearValues = 1 << 13, kNearBlock = 96;

// Beyond the last weights it reads nothing.
inline void fetch16(const uint16_t* weight) { __builtin_prefetch(weight, 0, 2); }

#include "cpu/kernels/later16.inl"

inline bool asks_by_parts(const Conv16Call& c) { return padded_depth(c) >= 3 * kPairBlock; }
// Of a register block that ask.
inline int64_t asking_parts(const Conv16Call& c) {
  return asks_by_parts(c) ? padded_depth(c) / kPairBlock : 1;
}

// What the sums of a block meet when they are done: far memory by then, for every pixel elsewhere.
template <int R>
[[gnu::always_inline]] inline void fetch_outputs(const Conv16Call& c, const OutputPixel* pixels,
                                                 int64_t channel) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) __builtin_prefetch(pixels[r].output + (channel << c.interleaves), 1, 3);
  if (!c.residual.data) return;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) __builtin_prefetch(pixels[r].residual + channel, 0, 3);
}

// Sums of R pixels, NV vectors of channels each, begin at what is added to them.
template <int R, int NV>
[[gnu::always_inline]] inline void start_block(const Conv16Call& c, Vec (&acc)[R * NV], int64_t channel) {
#pragma GCC unroll 8
  for (int j = 0; j < NV; ++j) {
    const Vec first = c.shift ? Vec::load(c.shift + channel + j * Vec::kWidth) : Vec::zero();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r * NV + j] = first;
  }
}

// What stands behind them. In registers: inlined everywhere. Values: Bf16, by a name that may lack functions.
template <int R, int NV, class Values = Bf16>
[[gnu::always_inline]] inline void finish_block(const Conv16Call& c, Vec (&acc)[R * NV],
                                                const OutputPixel* pixels, int64_t channel) {
  const int64_t left = c.channels - channel;
  if (c.residual.data && !c.interleaves) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j)
        if (const int64_t lanes = left - j * Vec::kWidth; lanes > 0)
          acc[r * NV + j] = with_residual(acc[r * NV + j], pixels[r], channel + j * Vec::kWidth, lanes);
  }
  activate_sums(c.activation, acc);
  if constexpr (Values::kInterleaves) {
    if (c.interleaves) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
          const int64_t at = channel + j * Vec::kWidth, lanes = c.channels - at;
          if (lanes > 0)
            Values::store_interleaved(acc[r * NV + j], pixels[r].residual + at, lanes,
                                      pixels[r].output + 2 * at);
        }
      return;
    }
  }
  if (NV == 2 && left >= NV * Vec::kWidth) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      Bf16::store_two_sums(acc[r * NV], acc[r * NV + NV - 1], pixels[r].output + channel);
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      if (const int64_t lanes = left - j * Vec::kWidth; lanes > 0)
        store_vector(acc[r * NV + j], pixels[r], channel + j * Vec::kWidth, lanes);
}

// Weights of H halves of a panel that stores `halves`, and where their channels begin.
struct DotPanel {
  const uint16_t* weight;
  int64_t halves, channel;
  bool far;  // nobody has asked for the weights yet, and they are many
};

// How a register block multiplies. kFetches: weights are asked for ahead; kNarrow: the last vector has
// Dot::kNarrow channels at most.
enum class DotForm { kPlain, kFetches, kNarrow };

// One register block: R pixels. x: gathered values, `step` apart.
template <class Dot, int H, DotForm kForm, int R>
[[gnu::always_inline]] inline void dot_block(const Conv16Call& c, const typename Dot::Operand* x,
                                             int64_t step, const OutputPixel* pixels, const DotPanel& panel,
                                             Later& later) {
  constexpr int kPerHalf = static_cast<int>(kHalfPanel / Vec::kWidth), NV = H * kPerHalf;
  constexpr bool kFetches = kForm == DotForm::kFetches, kStreams = R <= kStreamPixels;
  fetch_outputs<R>(c, pixels, panel.channel);
  Vec acc[R * NV];
  start_block<R, NV>(c, acc, panel.channel);
  const int64_t all = (depth_of(c) + 1) / 2;
  const bool by_parts = asks_by_parts(c);
  if (!by_parts) later.ask();
  const uint16_t* weight = panel.weight;
  for (int64_t first = 0; first < all;
       first += kPairBlock / 2, weight += panel.halves * kHalfPanel * kPairBlock) {
    const uint16_t* w = weight;
    if (by_parts) later.ask();
    if constexpr (kFetches && kStreams)
      for (int64_t i = 0; i < H * kPairBlock * kHalfPanel; i += kLineValues) fetch16(w + kFarAheadValues + i);
    const int64_t left = all - first, pairs = left < kPairBlock / 2 ? left : kPairBlock / 2;
    const auto* block = x + 2 * first;
    for (int64_t p = 0; p < pairs; ++p, w += 2 * kHalfPanel) {
      typename Dot::Weights loaded[NV];
      if constexpr (kFetches && !kStreams) {
#pragma GCC unroll 2
        for (int h = 0; h < H; ++h) fetch16(w + kAheadValues + h * (kPairBlock * kHalfPanel));
      }
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j)
        loaded[j] = Dot::load(w + j / kPerHalf * (kPairBlock * kHalfPanel) + j % kPerHalf * 2 * Vec::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto* pair = block + r * step + 2 * p;
        if constexpr (kForm == DotForm::kNarrow) {
          const auto both = Dot::spread(pair);
#pragma GCC unroll 8
          for (int j = 0; j < NV - 1; ++j) acc[r * NV + j] = Dot::add(loaded[j], both, acc[r * NV + j]);
          acc[r * NV + NV - 1] = Dot::add_narrow(loaded[NV - 1], both, acc[r * NV + NV - 1]);
          continue;
        }
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[r * NV + j] = Dot::add(loaded[j], pair, acc[r * NV + j]);
      }
    }
  }
  finish_block<R, NV>(c, acc, pixels, panel.channel);
}

// Where the values of a block's pixels lie, `step` apart.
template <class Operand>
struct BlockValues {
  const Operand* first;
  int64_t step;
};

inline int64_t register_blocks(int64_t count) { return (count + kDotPixels - 1) / kDotPixels; }

// Register blocks of R pixels that follow one another: a call for each would take as long as a short dot
// product.
template <class Dot, int H, DotForm kForm, int R>
void dot_run(const Conv16Call& c, const typename Dot::Operand* x, int64_t step, const OutputPixel* pixels,
             int64_t blocks, const DotPanel& panel, Later& later) {
  for (; blocks > 0; --blocks, x += R * step, pixels += R) {
    dot_block<Dot, H, kForm, R>(c, x, step, pixels, panel, later);
  }
}

template <class Dot, int H, DotForm kForm, int R = kDotPixels>
void dot_run_of(int64_t count, const Conv16Call& c, const typename Dot::Operand* x, int64_t step,
                const OutputPixel* pixels, int64_t blocks, const DotPanel& panel, Later& later) {
  if constexpr (R > 1) {
    if (count < R) return dot_run_of<Dot, H, kForm, R - 1>(count, c, x, step, pixels, blocks, panel, later);
  }
  dot_run<Dot, H, kForm, R>(c, x, step, pixels, blocks, panel, later);
}

// Register blocks as equal as possible, so that none is tiny: first those of a pixel more. The very first one
// fetches weights that do not stay near.
template <class Dot, int H>
void dot_blocks(const Conv16Call& c, BlockValues<typename Dot::Operand> x, const OutputPixel* pixels,
                int64_t count, const DotPanel& panel, Later& later) {
  const int64_t blocks = register_blocks(count), least = count / blocks;
  int64_t larger = count % blocks, smaller = blocks - larger;
  const auto run = [&](auto* dots, int64_t size, int64_t of_them) {
    dots(size, c, x.first, x.step, pixels, of_them, panel, later);
    x.first += size * of_them * x.step;
    pixels += size * of_them;
  };
  if (panel.far) {
    run(dot_run_of<Dot, H, DotForm::kFetches>, larger ? least + 1 : least, 1);
    --(larger ? larger : smaller);
  }
  auto* dots = dot_run_of<Dot, H, DotForm::kPlain>;
  if constexpr (Dot::kNarrow > 0) {
    if (c.channels - panel.channel <= H * kHalfPanel - Vec::kWidth + Dot::kNarrow)
      dots = dot_run_of<Dot, H, DotForm::kNarrow>;
  }
  if (larger) run(dots, least + 1, larger);
  if (smaller) run(dots, least, smaller);
}

#include "cpu/kernels/short_pairs16.inl"

inline int64_t stored_channels(const Conv16Call& c, int64_t panel) {
  return c.channels - panel * kPanelChannels > kHalfPanel ? kPanelChannels : kHalfPanel;
}
inline const uint16_t* weights_of(const Conv16Call& c, int64_t panel) {
  return c.weight + panel * kPanelChannels * padded_depth(c);
}

// All pixels of a block in one panel.
template <class Dot>
void dot_panel(const Conv16Call& c, const BlockValues<typename Dot::Operand>& x, const OutputPixel* pixels,
               int64_t count, int64_t panel, bool far, Later& later) {
  const int64_t channel = panel * kPanelChannels, halves = stored_channels(c, panel) / kHalfPanel;
  if (c.short_pairs) return short_panel<Dot>(c, x, pixels, count, panel, halves);
  const uint16_t* weight = weights_of(c, panel);
  if (halves == 2 && kDotHalves == 2)
    return dot_blocks<Dot, 2>(c, x, pixels, count, {weight, halves, channel, far}, later);
  for (int64_t half = 0; half < halves; ++half)
    dot_blocks<Dot, 1>(c, x, pixels, count,
                       {weight + half * kPairBlock * kHalfPanel, halves, channel + half * kHalfPanel, far},
                       later);
}

// Panels [begin, end) of a block of pixels. again: the first of them comes again, with other pixels.
template <class Dot>
void dot_panels(const Conv16Call& c, const BlockValues<typename Dot::Operand>& x, const OutputPixel* pixels,
                int64_t count, int64_t begin, int64_t end, bool first, bool again, Later& later) {
  const int64_t weights = c.channels * padded_depth(c), blocks = register_blocks(count);
  const bool many = weights > kResidentValues;
  // Of one register block its own weights are the next.
  const bool asks = blocks > 1 && !c.short_pairs && (many || (first && weights > kNearValues));
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t next = panel + 1 < end ? panel + 1 : begin;
    later.weights = {};
    if (asks && (next > begin || again))
      later.weights = {weights_of(c, next), stored_channels(c, next) * padded_depth(c),
                       blocks * asking_parts(c) * (stored_channels(c, panel) / kHalfPanel) / kDotHalves + 1};
    const bool far = many && (!asks || (first && panel == begin));
    dot_panel<Dot>(c, x, pixels, count, panel, far, later);
  }
}

#include "cpu/kernels/gather16.inl"

inline int64_t gathered_pixels(const Conv16Call& c) {
  return (c.block_pixels + kDotPixels - 1) / kDotPixels * kDotPixels;
}

template <class Dot>
int64_t gather_scratch(const Conv16Call& c) {
  const auto operand = static_cast<int64_t>(sizeof(typename Dot::Operand));
  return operand * gathered_pixels(c) * gathered_step(c) +
         gathered_pixels(c) * static_cast<int64_t>(sizeof(OutputPixel));
}

// Up to so many values dot products are read where they lie, unless pixels are a multiple of such a distance
// apart and share a few sets of the first-level cache; longer ones if nothing lies between the pixels.
constexpr int64_t kStraightValues = 128, kSharedSets = 512;

// Pixels of one pass over all panels. Values are gathered in the first-level cache where weights stay there
// from pass to pass; elsewhere passes are long, for the weights' sake.
inline int64_t pass_pixels(const Conv16Call& c, bool straight) {
  const int64_t depth = padded_depth(c);
  if ((!straight || depth > kStraightValues) && c.channels * depth > kNearValues) return c.block_pixels;
  const int64_t blocks = kNearValues / (depth * kNearBlock), pixels = (blocks > 1 ? blocks : 1) * kNearBlock;
  return pixels < c.block_pixels ? pixels : c.block_pixels;
}

// Whether pixels follow each other at one distance, each the values of its dot product.
template <class Dot>
bool reads_straight(const Conv16Call& c) {
  if (!Dot::kAsStored || c.short_pairs || c.taps > 1 || c.stride_h > 1 || c.stride_w > 1 || c.in_scale)
    return false;
  if (c.length % 2) return false;
  if (c.length > kStraightValues ? c.input.pixel != c.length : c.input.pixel % kSharedSets == 0) return false;
  return c.input.row == c.width * c.input.pixel && (c.images == 1 || c.input.image == c.height * c.input.row);
}

template <class Dot>
void gathered_conv(const Conv16Call& c, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
                   int64_t panel_end) {
  using Operand = typename Dot::Operand;
  auto* values = static_cast<Operand*>(c.scratch);
  auto* pixels = reinterpret_cast<OutputPixel*>(values + gathered_pixels(c) * gathered_step(c));
  const bool straight = reads_straight<Dot>(c);
  const int64_t block = pass_pixels(c, straight);
  const bool far = (pixel_end - pixel_begin) * c.stride_h * c.stride_w * c.input.pixel > kResidentValues;
  Pixel16Walk walk(c, pixel_begin);
  for (int64_t at = pixel_begin; at < pixel_end;) {
    const int64_t left = pixel_end - at, count = left < block ? left : block;
    BlockValues<Operand> read{values, gathered_step(c)};
    if constexpr (Dot::kAsStored)
      if (straight) read = {walk.here().input, c.input.pixel};
    walk.take(count, pixels);
    if (!straight) gather_pixels<Dot>(c, pixels, at, count, values);
    at += count;
    Later later;
    if (at < pixel_end)
      later.pixels = later_pixels(c, walk.here().input, pixel_end - at < count ? pixel_end - at : count,
                                  register_blocks(count) * (panel_end - panel_begin) * asking_parts(c), far);
    dot_panels<Dot>(c, read, pixels, count, panel_begin, panel_end, at - count == pixel_begin, at < pixel_end,
                    later);
  }
}

}  // namespace
