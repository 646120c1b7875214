// The gradient of a convolution's weight: for every kernel position, sums over output pixels of one input
// value times one gradient value. A register block of R input values (broadcast) by NV vectors of output
// channels runs over a strip of pixels. Inputs are read where they lie.
#pragma once
#include "cpu/kernels/stream.inl"

namespace {

// Blocks of kernel positions: accumulators, vectors of gradients and pointers to inputs fit the registers.
constexpr int kPositions[] = {8, Vec::kWidth == 16 ? 8 : 6, Vec::kWidth == 16 ? 8 : 4, 6};
// Gradients of one panel of a strip of pixels, copied to lie side by side, stay in the first-level cache.
constexpr int64_t kStripFloats = 6144;
constexpr int64_t kStripRuns = kStripFloats / Vec::kWidth;
// Sums that stay in the second-level cache beside the pixels that pass.
constexpr int64_t kResidentSums = 128 * 1024;

// Pixels of a strip: runs inside rows.
struct PixelRuns {
  int64_t count = 0;
  int64_t pixel;  // distance of two input pixels of a run
  struct {
    const float* input;
    int64_t length;
  } run[kStripRuns];
};

// What is far away and will be needed: fetched line by line between the products, since many at once would
// wait for one another and the products for them.
struct Feed {
  const float* at = nullptr;
  int64_t half = 0;  // floats; a pixel fetches the lines of two places so far apart

  // Part `step` out of `steps`, in so many pixels.
  template <int kCount>
  static Feed part_of(const FarFloats (&far)[kCount], int64_t step, int64_t steps, int64_t pixels) {
    int64_t all = 0;
    for (const FarFloats& f : far) all += f.count;
    int64_t begin = all * step / steps, end = all * (step + 1) / steps;
    for (const FarFloats& f : far) {
      if (begin < f.count) {
        const int64_t count = (end < f.count ? end : f.count) - begin;
        return {f.data + begin, (count + 2 * pixels - 1) / (2 * pixels)};
      }
      begin -= f.count;
      end -= f.count;
    }
    return {};
  }
  void fetch() {
    __builtin_prefetch(at, 0, 2);
    __builtin_prefetch(at + half, 0, 2);
    at += 2 * half;
  }
};

// sums[r][lane] += input[offset[r]] * grad[lane] over all pixels of the strip.
template <int NV, int R>
void strip_products(const PixelRuns& runs, const int64_t* offset, const float* grad, float* sums, bool first,
                    Feed feed) {
  Vec acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      acc[r][j] = first ? Vec::zero() : Vec::load(sums + (r * NV + j) * Vec::kWidth);
  for (int64_t i = 0; i < runs.count; ++i) {
    const float* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = runs.run[i].input + offset[r];
    const int64_t end = runs.run[i].length * runs.pixel;
    for (int64_t p = 0; p < end; p += runs.pixel, grad += NV * Vec::kWidth) {
      feed.fetch();
      Vec b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) b[j] = Vec::load(grad + j * Vec::kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec a = Vec::set1(x[r][p]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[r][j] = Vec::fma(a, b[j], acc[r][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[r][j].store(sums + (r * NV + j) * Vec::kWidth);
}

template <int NV, int R = kPositions[NV - 1]>
inline void strip_products_of(int64_t positions, const PixelRuns& runs, const int64_t* offset,
                              const float* grad, float* sums, bool first, const Feed& feed) {
  if (positions == R) return strip_products<NV, R>(runs, offset, grad, sums, first, feed);
  if constexpr (R > 1) strip_products_of<NV, R - 1>(positions, runs, offset, grad, sums, first, feed);
}

template <int NV = Vec::kMaxPanelVectors>
inline void panel_products(int64_t vectors, int64_t positions, const PixelRuns& runs, const int64_t* offset,
                           const float* grad, float* sums, bool first, const Feed& feed = {}) {
  if (vectors == NV) return strip_products_of<NV>(positions, runs, offset, grad, sums, first, feed);
  if constexpr (NV > 1) panel_products<NV - 1>(vectors, positions, runs, offset, grad, sums, first, feed);
}

// One panel of output channels.
struct GradientPanel {
  int64_t channel, channels, vectors;
  GradientPanel(int64_t all, int64_t panel_vectors, int64_t panel) {
    channel = panel * panel_vectors * Vec::kWidth;
    const int64_t left = all - channel;
    channels = left < panel_vectors * Vec::kWidth ? left : panel_vectors * Vec::kWidth;
    vectors = (channels + Vec::kWidth - 1) / Vec::kWidth;
  }
};

int64_t position_blocks(int64_t positions, int64_t panel_vectors) {
  return (positions + kPositions[panel_vectors - 1] - 1) / kPositions[panel_vectors - 1];
}

// Output pixels [begin, end), over all images, as runs.
void find_runs(const WeightGradCall& c, int64_t begin, int64_t end, PixelRuns& runs) {
  runs.count = 0;
  runs.pixel = c.stride_w * c.input.pixel;
  int64_t row = begin / c.width, x = begin % c.width;
  for (int64_t left = end - begin; left > 0; ++row, x = 0) {
    const int64_t length = c.width - x < left ? c.width - x : left;
    runs.run[runs.count].input = c.input.data + row / c.height * c.input.image +
                                 row % c.height * c.stride_h * c.input.row + x * runs.pixel;
    runs.run[runs.count++].length = length;
    left -= length;
  }
}

void copy_gradients(const WeightGradCall& c, int64_t begin, int64_t end, const GradientPanel& panel,
                    float* to) {
  const int64_t last = (panel.vectors - 1) * Vec::kWidth;
  int64_t row = begin / c.width, x = begin % c.width;
  for (int64_t left = end - begin; left > 0; ++row, x = 0) {
    const int64_t length = c.width - x < left ? c.width - x : left;
    const float* from = c.grad.data + row / c.height * c.grad.image + row % c.height * c.grad.row +
                        x * c.grad.pixel + panel.channel;
    for (int64_t i = 0; i < length; ++i, from += c.grad.pixel, to += last + Vec::kWidth) {
      for (int64_t j = 0; j < last; j += Vec::kWidth) Vec::load(from + j).store(to + j);
      Vec::load_first(from + last, panel.channels - last).store(to + last);
    }
    left -= length;
  }
}

// The next strip's pixels [begin, end), where all of them lie in one row or one column.
bool find_far(const WeightGradCall& c, int64_t begin, int64_t end, FarFloats (&far)[2]) {
  const bool row = c.images == 1 && c.height == 1, column = c.height == 1 && c.width == 1;
  if (!row && !column) return false;
  const int64_t input = row ? c.stride_w * c.input.pixel : c.input.image;
  const int64_t grad = row ? c.grad.pixel : c.grad.image;
  far[0] = {c.input.data + begin * input, (end - begin) * input};
  far[1] = {c.grad.data + begin * grad, (end - begin) * grad};
  return true;
}

// Sums of so many panels stay in the second-level cache while all pixels pass.
int64_t panels_at_once(const WeightGradCall& c) {
  const int64_t panel = c.positions * c.panel_vectors * Vec::kWidth;
  return panel < kResidentSums ? kResidentSums / panel : 1;
}

void weight_gradient(const WeightGradCall& c, int64_t unit_begin, int64_t unit_end) {
  const int64_t blocks = position_blocks(c.positions, c.panel_vectors);
  const int64_t pixels_end = c.last ? c.last : c.images * c.height * c.width, pixels = pixels_end - c.first;
  const int64_t longest = kStripFloats / (c.panel_vectors * Vec::kWidth);
  const int64_t strips = (pixels + longest - 1) / longest, strip = (pixels + strips - 1) / strips;
  const bool far_pixels =
      c.offset[c.positions - 1] + 1 == c.positions && pixels * (c.positions + c.channels) > kNearFloats;
  const int64_t at_once = panels_at_once(c) * blocks;
  const bool ahead = c.ahead[0].count > 0;
  const int64_t steps = strips * (unit_end - unit_begin);
  int64_t step = 0;
  PixelRuns runs;
  alignas(64) float grad[kStripFloats];
  for (int64_t from = unit_begin, to; from < unit_end; from = to) {
    to = from - from % blocks + at_once;
    if (to > unit_end) to = unit_end;
    for (int64_t begin = c.first; begin < pixels_end; begin += strip) {
      const int64_t end = begin + strip < pixels_end ? begin + strip : pixels_end;
      const int64_t next = end + strip < pixels_end ? end + strip : pixels_end;
      find_runs(c, begin, end, runs);
      FarFloats far[2]{};
      const bool fetches = far_pixels && find_far(c, end, next, far);
      for (int64_t unit = from; unit < to;) {
        const GradientPanel panel(c.channels, c.panel_vectors, unit / blocks);
        copy_gradients(c, begin, end, panel, grad);
        float* sums = c.sums + panel.channel * c.positions;
        const int64_t panel_end = (unit / blocks + 1) * blocks;
        for (int64_t block = unit % blocks; unit < to && unit < panel_end; ++unit, ++block) {
          const Feed feed = ahead     ? Feed::part_of(c.ahead, step++, steps, end - begin)
                            : fetches ? Feed::part_of(far, unit - from, to - from, end - begin)
                                      : Feed{};
          const int64_t first = c.positions * block / blocks, last = c.positions * (block + 1) / blocks;
          panel_products(panel.vectors, last - first, runs, c.offset + first, grad,
                         sums + first * panel.vectors * Vec::kWidth, begin == c.first && !c.adds, feed);
        }
      }
    }
  }
}

int64_t gradient_units(int64_t channels, int64_t panel_vectors, int64_t positions) {
  const int64_t lanes = panel_vectors * Vec::kWidth;
  return (channels + lanes - 1) / lanes * position_blocks(positions, panel_vectors);
}

}  // namespace
