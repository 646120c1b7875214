// The gradient of a convolution's weight: for every kernel position, sums over output pixels of one input
// value times one gradient value. A register block of R input values (broadcast) by NV vectors of output
// channels runs over a strip of pixels. Inputs are read where they lie.
#include "cpu/kernels/conv.inl"
#include "cpu/kernels/winograd.inl"

namespace {

// Blocks of kernel positions: accumulators, vectors of gradients and pointers to inputs fit the registers.
constexpr int kPositions[] = {8, 8, 8, 6};
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

template <int NV = Vec::kPanelVectors>
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
  const int64_t pixels = c.images * c.height * c.width;
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
    for (int64_t begin = 0; begin < pixels; begin += strip) {
      const int64_t end = begin + strip < pixels ? begin + strip : pixels;
      const int64_t next = end + strip < pixels ? end + strip : pixels;
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
                         sums + first * panel.vectors * Vec::kWidth, begin == 0 && !c.adds, feed);
        }
      }
    }
  }
}

// --- Winograd's F(K x K, T x T), N points: the gradient of a K x K kernel, tiles of T x T gradients playing
// the kernel's part. ---

// Where the parts of a strip of tiles lie in a thread's scratch memory: inputs of its own channels in blocks,
// and gradients of all channels in panels, tile by tile; then the sums of one block and panel, and their
// kernels. Distances of points are kept off multiples of 4 KB.
struct GradientScratch {
  TileRows input;
  int64_t panel_lanes, panels, grad_panel, grad_point;
  int64_t sums_point, sums;  // of a block and a panel: distance of two points, all
  int64_t kernels, floats;
  GradientScratch(const WinogradGradCall& c, int64_t in_channels) {
    const int64_t w = Vec::kWidth, points = c.points * c.points;
    const int64_t blocks = (in_channels + kBlockChannels - 1) / kBlockChannels;
    input = {kBlockChannels, blocks * c.strip_tiles * kBlockChannels + w, c.strip_tiles * kBlockChannels, 5};
    panel_lanes = c.panel_vectors * w;
    panels = (c.channels + panel_lanes - 1) / panel_lanes;
    grad_panel = c.strip_tiles * panel_lanes;
    grad_point = panels * grad_panel + w;
    sums_point = kBlockChannels * panel_lanes + w;
    sums = points * sums_point;
    kernels = c.kernel * c.kernel * kBlockChannels * w;
    floats = points * (input.point + grad_point) + sums + kernels;
  }
};

template <int N, int T>
void transform_gradient_tile(const WinogradGradCall& c, const GradientScratch& s, int64_t tile,
                             const TilePlace& at, const TilePlace* next, float* grad) {
  const int64_t rows = c.height - at.y < T ? c.height - at.y : T;
  const int64_t columns = c.width - at.x < T ? c.width - at.x : T;
  const float* from = at_place(c.grad, at);
  const float* ahead = next ? at_place(c.grad, *next) : nullptr;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t left = c.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    const GradientPanel panel(c.channels, c.panel_vectors, channel / s.panel_lanes);
    float* to = grad + channel / s.panel_lanes * s.grad_panel + tile * panel.vectors * Vec::kWidth + channel -
                panel.channel;
    if (ahead) fetch_pixels<0>(ahead + channel, c.grad, T, 0, T);
    Vec t[N * T];
#pragma GCC unroll 4
    for (int x = 0; x < T; ++x) {
      Vec g[T];
#pragma GCC unroll 4
      for (int y = 0; y < T; ++y)
        g[y] = y < rows && x < columns
                   ? Vec::load_first(from + y * c.grad.row + x * c.grad.pixel + channel, lanes)
                   : Vec::zero();
      transform_kernel<N, T>(g, t + x, T);
    }
#pragma GCC unroll 8
    for (int y = 0; y < N; ++y) {
      Vec u[N];
      transform_kernel<N, T>(t + y * T, u, 1);
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) u[x].store(to + (y * N + x) * s.grad_point);
    }
  }
}

// Sums of a block of input channels by a panel of output channels over the tiles of a strip, point by point.
void add_tile_products(const WinogradGradCall& c, const GradientScratch& s, const GradientPanel& panel,
                       const float* input, int64_t channels, const float* grad, int64_t tiles, float* sums,
                       bool first) {
  const int64_t blocks = position_blocks(channels, c.panel_vectors), row = panel.vectors * Vec::kWidth;
  static constexpr int64_t kNext[] = {0, 1, 2, 3, 4, 5, 6, 7};
  PixelRuns runs;
  runs.count = 1;
  runs.pixel = s.input.row;
  runs.run[0].length = tiles;
  for (int64_t point = 0; point < c.points * c.points; ++point)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = channels * block / blocks, end = channels * (block + 1) / blocks;
      runs.run[0].input = input + point * s.input.point + begin;
      panel_products(panel.vectors, end - begin, runs, kNext, grad + point * s.grad_point,
                     sums + point * s.sums_point + begin * row, first);
    }
}

// Sums of a block and a panel back to K x K kernels, and into the weight's gradient. `in`: the first channel.
template <int N, int K>
void finish_kernels(const WinogradGradCall& c, const GradientScratch& s, const GradientPanel& panel,
                    const float* sums, int64_t in, int64_t channels, float* kernels) {
  const int64_t row = panel.vectors * Vec::kWidth;
  for (int64_t lane = 0; lane < panel.channels; lane += Vec::kWidth) {
    for (int64_t i = 0; i < channels; ++i) {
      const float* from = sums + i * row + lane;
      Vec t[K * N];
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x) {
        Vec m[N];
#pragma GCC unroll 8
        for (int y = 0; y < N; ++y) m[y] = Vec::load(from + (y * N + x) * s.sums_point);
        transform_output<N, K>(m, 1, t + x, N);
      }
#pragma GCC unroll 5
      for (int y = 0; y < K; ++y) {
        Vec v[K];
        transform_output<N, K>(t + y * N, 1, v, 1);
#pragma GCC unroll 5
        for (int x = 0; x < K; ++x) v[x].store(kernels + ((y * K + x) * kBlockChannels + i) * Vec::kWidth);
      }
    }
    const int64_t lanes = panel.channels - lane < Vec::kWidth ? panel.channels - lane : Vec::kWidth;
    scatter_kernels({kernels, Vec::kWidth, kBlockChannels * Vec::kWidth, K, K, channels, lanes,
                     c.weight_grad + (panel.channel + lane) * c.strides.out + in * c.strides.in,
                     c.strides.out, c.strides.in, c.strides.row, c.strides.column});
  }
}

template <int N, int K>
void winograd_gradient_of(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  constexpr int T = N - K + 1;
  const GradientScratch s(c, in_end - in_begin);
  float* input = c.scratch;
  float* grad = input + N * N * s.input.point;
  float* own = grad + N * N * s.grad_point;
  float* kernels = own + s.sums;
  WinogradCall tiles_of{};
  tiles_of.input = c.input;
  tiles_of.input.data += in_begin;
  tiles_of.in_channels = in_end - in_begin;
  tiles_of.tile = T;
  tiles_of.tile_rows = (c.height + T - 1) / T;
  tiles_of.tile_columns = (c.width + T - 1) / T;
  const int64_t tiles = c.images * tiles_of.tile_rows * tiles_of.tile_columns;
  const bool far_input = tiles * T * T * tiles_of.in_channels > kNearFloats,
             far_grad = tiles * T * T * c.channels > kNearFloats;
  TilePlace at(tiles_of, 0);
  for (int64_t begin = 0; begin < tiles; begin += c.strip_tiles) {
    const int64_t count = tiles - begin < c.strip_tiles ? tiles - begin : c.strip_tiles;
    for (int64_t t = 0; t < count; ++t) {
      const TilePlace next = at.next(tiles_of);
      winograd_input<N, T, false>(tiles_of, s.input, t, at, far_input ? &next : nullptr, input);
      transform_gradient_tile<N, T>(c, s, t, at, far_grad ? &next : nullptr, grad);
      at = next;
    }
    float* sums = c.strip_tiles < tiles ? c.sums : own;
    for (int64_t p = 0; p < s.panels; ++p) {
      const GradientPanel panel(c.channels, c.panel_vectors, p);
      for (int64_t in = 0; in < tiles_of.in_channels; in += kBlockChannels) {
        const int64_t left = tiles_of.in_channels - in,
                      channels = left < kBlockChannels ? left : kBlockChannels;
        add_tile_products(c, s, panel, input + in / kBlockChannels * s.input.block, channels,
                          grad + p * s.grad_panel, count, sums, begin == 0);
        if (begin + count == tiles) finish_kernels<N, K>(c, s, panel, sums, in_begin + in, channels, kernels);
        if (c.strip_tiles < tiles) sums += s.sums;
      }
    }
  }
}

void winograd_gradient(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  switch (c.points * 16 + c.kernel) {
    case 5 * 16 + 3:
      return winograd_gradient_of<5, 3>(c, in_begin, in_end);
    case 6 * 16 + 3:
      return winograd_gradient_of<6, 3>(c, in_begin, in_end);
    case 6 * 16 + 5:
      return winograd_gradient_of<6, 5>(c, in_begin, in_end);
    case 8 * 16 + 5:
      return winograd_gradient_of<8, 5>(c, in_begin, in_end);
  }
}

int64_t winograd_gradient_scratch(const WinogradGradCall& c, int64_t in_channels) {
  return GradientScratch(c, in_channels).floats;
}

int64_t winograd_gradient_sums(const WinogradGradCall& c, int64_t in_channels) {
  const GradientScratch s(c, in_channels);
  return s.sums * s.panels * ((in_channels + kBlockChannels - 1) / kBlockChannels);
}

int64_t gradient_units(int64_t channels, int64_t panel_vectors, int64_t positions) {
  const int64_t lanes = panel_vectors * Vec::kWidth;
  return (channels + lanes - 1) / lanes * position_blocks(positions, panel_vectors);
}

}  // namespace
