// The gradient of a convolution's weight: for every kernel position, sums over output pixels of one input
// value times one gradient value. A register block of R input values (broadcast) by NV vectors of output
// channels runs over a strip of pixels. Inputs are read where they lie.
#include "cpu/kernels/conv.inl"
#include "cpu/kernels/winograd.inl"

namespace {

// Blocks of kernel positions: accumulators, vectors of gradients and pointers to inputs fit the registers.
constexpr int kPositions[] = {8, 8, 8, 6};
// Gradients of one panel of a strip of pixels, copied to lie side by side, stay in the first-level cache.
constexpr int64_t kStripFloats = 4096;
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

// sums[r][lane] += input[offset[r]] * grad[lane] over all pixels of the strip.
template <int NV, int R>
void strip_products(const PixelRuns& runs, const int64_t* offset, const float* grad, float* sums,
                    bool first) {
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
                              const float* grad, float* sums, bool first) {
  if (positions == R) return strip_products<NV, R>(runs, offset, grad, sums, first);
  if constexpr (R > 1) strip_products_of<NV, R - 1>(positions, runs, offset, grad, sums, first);
}

template <int NV = Vec::kPanelVectors>
inline void panel_products(int64_t vectors, int64_t positions, const PixelRuns& runs, const int64_t* offset,
                           const float* grad, float* sums, bool first) {
  if (vectors == NV) return strip_products_of<NV>(positions, runs, offset, grad, sums, first);
  if constexpr (NV > 1) panel_products<NV - 1>(vectors, positions, runs, offset, grad, sums, first);
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

// The next strip's inputs, where they are adjacent and far away: part `block` out of `blocks`.
void fetch_strip(const WeightGradCall& c, int64_t begin, int64_t end, int64_t block, int64_t blocks) {
  const int64_t first = begin + (end - begin) * block / blocks,
                last = begin + (end - begin) * (block + 1) / blocks;
  for (int64_t pixel = first; pixel < last; ++pixel) {
    const int64_t row = pixel / c.width, x = pixel % c.width, y = row % c.height, n = row / c.height;
    const float* in =
        c.input.data + n * c.input.image + y * c.stride_h * c.input.row + x * c.stride_w * c.input.pixel;
    const float* grad = c.grad.data + n * c.grad.image + y * c.grad.row + x * c.grad.pixel;
    for (int64_t i = 0; i < c.positions; i += kLineFloats) __builtin_prefetch(in + i, 0, 2);
    for (int64_t i = 0; i < c.channels; i += kLineFloats) __builtin_prefetch(grad + i, 0, 2);
  }
}

// Sums of so many panels stay in the second-level cache while all pixels pass.
int64_t panels_at_once(const WeightGradCall& c) {
  const int64_t panel = c.positions * c.panel_vectors * Vec::kWidth;
  return panel < kResidentSums ? kResidentSums / panel : 1;
}

void weight_gradient(const WeightGradCall& c, int64_t unit_begin, int64_t unit_end) {
  const int64_t blocks = position_blocks(c.positions, c.panel_vectors);
  const int64_t pixels = c.images * c.height * c.width;
  const int64_t strip = kStripFloats / (c.panel_vectors * Vec::kWidth);
  const bool fetches =
      c.offset[c.positions - 1] + 1 == c.positions && pixels * (c.positions + c.channels) > kNearFloats;
  const int64_t at_once = panels_at_once(c) * blocks;
  PixelRuns runs;
  alignas(64) float grad[kStripFloats];
  for (int64_t from = unit_begin, to; from < unit_end; from = to) {
    to = from - from % blocks + at_once;
    if (to > unit_end) to = unit_end;
    for (int64_t begin = 0; begin < pixels; begin += strip) {
      const int64_t end = begin + strip < pixels ? begin + strip : pixels;
      const int64_t next = end + strip < pixels ? end + strip : pixels;
      find_runs(c, begin, end, runs);
      for (int64_t unit = from; unit < to;) {
        const GradientPanel panel(c.channels, c.panel_vectors, unit / blocks);
        copy_gradients(c, begin, end, panel, grad);
        float* sums = c.sums + panel.channel * c.positions;
        const int64_t panel_end = (unit / blocks + 1) * blocks;
        for (int64_t block = unit % blocks; unit < to && unit < panel_end; ++unit, ++block) {
          if (fetches) fetch_strip(c, end, next, unit - from, to - from);
          const int64_t first = c.positions * block / blocks, last = c.positions * (block + 1) / blocks;
          panel_products(panel.vectors, last - first, runs, c.offset + first, grad,
                         sums + first * panel.vectors * Vec::kWidth, begin == 0);
        }
      }
    }
  }
}

// --- F(K x K, T x T), 6 points: the gradient of a K x K kernel, tiles of T x T gradients playing the
// kernel's part; 3x3 kernels by tiles of 4x4, 5x5 ones by tiles of 2x2. ---

template <int Q>
constexpr double pair_distance() {
  using P = WinogradPoints<6>;
  const double p = P::kPair[Q] * P::kPair[Q], q = P::kPair[1 - Q] * P::kPair[1 - Q];
  return 2.0 * p * (p - q);
}

template <int Q, int T>
inline void transform_gradient_pair(const Vec* g, Vec* out, int step) {
  constexpr double p = WinogradPoints<6>::kPair[Q], f = pair_distance<Q>();
  constexpr float c0 = static_cast<float>(1.0 / f), c1 = static_cast<float>(p / f),
                  c2 = static_cast<float>(p * p / f), c3 = static_cast<float>(p * p * p / f);
  Vec even = g[0] * Vec::set1(c0), odd = g[1] * Vec::set1(c1);
  if constexpr (T == 4) {
    even = Vec::fma(g[2], Vec::set1(c2), even);
    odd = Vec::fma(g[3], Vec::set1(c3), odd);
  }
  out[(1 + 2 * Q) * step] = even + odd;
  out[(2 + 2 * Q) * step] = even - odd;
}

// One dimension: T gradients -> 6 values; row i of the matrix holds the powers of point i over the product of
// its distances to the other points.
template <int T>
inline void transform_gradient(const Vec* g, Vec* out, int step) {
  static_assert(T == 2 || T == 4);
  using P = WinogradPoints<6>;
  constexpr float zero = static_cast<float>(1.0 / (P::kPair[0] * P::kPair[0] * P::kPair[1] * P::kPair[1]));
  out[0] = g[0] * Vec::set1(zero);
  transform_gradient_pair<0, T>(g, out, step);
  transform_gradient_pair<1, T>(g, out, step);
  out[5 * step] = g[T - 1];
}

// Where the parts of a strip of tiles lie in a thread's scratch memory: inputs of its own channels, gradients
// of all. Distances of points are kept off multiples of 4 KB.
struct GradientScratch {
  TileRows input;  // all channels of a tile in one block
  int64_t grad_row, grad_point, floats;
  GradientScratch(const WinogradGradCall& c, int64_t in_channels) {
    const int64_t w = Vec::kWidth;
    const int64_t row = (in_channels + w - 1) / w * w;
    input = {row, c.strip_tiles * row + w, 0, 62};
    grad_row = (c.channels + w - 1) / w * w;
    grad_point = c.strip_tiles * grad_row + w;
    floats = 36 * (input.point + grad_point);
  }
};

template <int T>
void transform_gradient_tile(const WinogradGradCall& c, const GradientScratch& s, const TilePlace& at,
                             const TilePlace* next, float* to) {
  const int64_t rows = c.height - at.y < T ? c.height - at.y : T;
  const int64_t columns = c.width - at.x < T ? c.width - at.x : T;
  const float* from = at_place(c.grad, at);
  const float* ahead = next ? at_place(c.grad, *next) : nullptr;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t left = c.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    if (ahead) fetch_pixels<0>(ahead + channel, c.grad, T, 0, T);
    Vec t[6 * T];
#pragma GCC unroll 4
    for (int x = 0; x < T; ++x) {
      Vec g[T];
#pragma GCC unroll 4
      for (int y = 0; y < T; ++y)
        g[y] = y < rows && x < columns
                   ? Vec::load_first(from + y * c.grad.row + x * c.grad.pixel + channel, lanes)
                   : Vec::zero();
      transform_gradient<T>(g, t + x, T);
    }
#pragma GCC unroll 6
    for (int y = 0; y < 6; ++y) {
      Vec u[6];
      transform_gradient<T>(t + y * T, u, 1);
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) u[x].store(to + (y * 6 + x) * s.grad_point + channel);
    }
  }
}

// The products of one strip of tiles, point by point. A panel's gradients are copied side by side.
void add_tile_products(const WinogradGradCall& c, const GradientScratch& s, const float* input,
                       const float* grad, int64_t tiles, int64_t in_begin, int64_t in_end, bool first) {
  const int64_t count = in_end - in_begin, blocks = position_blocks(count, c.panel_vectors);
  const int64_t lanes = c.panel_vectors * Vec::kWidth, panels = (c.channels + lanes - 1) / lanes;
  static constexpr int64_t kNext[] = {0, 1, 2, 3, 4, 5, 6, 7};
  PixelRuns runs;
  runs.count = 1;
  runs.pixel = s.input.row;
  runs.run[0].length = tiles;
  alignas(64) float own[kStripFloats];
  for (int64_t point = 0; point < 36; ++point)
    for (int64_t i = 0; i < panels; ++i) {
      const GradientPanel panel(c.channels, c.panel_vectors, i);
      const float* from = grad + point * s.grad_point + panel.channel;
      const int64_t row = panel.vectors * Vec::kWidth;
      for (int64_t t = 0; t < tiles; ++t)
        for (int64_t j = 0; j < row; j += Vec::kWidth)
          Vec::load(from + t * s.grad_row + j).store(own + t * row + j);
      float* sums = c.sums + (point * s.grad_row + panel.channel) * c.in_channels + in_begin * row;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t begin = count * block / blocks, end = count * (block + 1) / blocks;
        runs.run[0].input = input + point * s.input.point + begin;
        panel_products(panel.vectors, end - begin, runs, kNext, own, sums + begin * row, first);
      }
    }
}

// Back to K x K kernels, for the thread's input channels.
template <int K>
void finish_kernels(const WinogradGradCall& c, int64_t grad_row, int64_t in_begin, int64_t in_end) {
  const int64_t panel_lanes = c.panel_vectors * Vec::kWidth;
  for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) {
    const int64_t left = c.channels - channel, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    const GradientPanel panel(c.channels, c.panel_vectors, channel / panel_lanes);
    for (int64_t i = in_begin; i < in_end; ++i) {
      const float* from =
          c.sums + panel.channel * c.in_channels + i * panel.vectors * Vec::kWidth + channel - panel.channel;
      Vec t[K * 6];
#pragma GCC unroll 6
      for (int x = 0; x < 6; ++x) {
        Vec m[6];
#pragma GCC unroll 6
        for (int y = 0; y < 6; ++y) m[y] = Vec::load(from + (y * 6 + x) * grad_row * c.in_channels);
        transform_output<6, K>(m, 1, t + x, 6);
      }
      float kernel[K * K * Vec::kWidth];
#pragma GCC unroll 5
      for (int y = 0; y < K; ++y) {
        Vec v[K];
        transform_output<6, K>(t + y * 6, 1, v, 1);
#pragma GCC unroll 5
        for (int x = 0; x < K; ++x) v[x].store(kernel + (y * K + x) * Vec::kWidth);
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        float* to = c.weight_grad + (channel + lane) * c.weight_out + i * c.weight_in;
        for (int64_t y = 0; y < K; ++y)
          for (int64_t x = 0; x < K; ++x)
            to[y * c.weight_row + x * c.weight_column] = kernel[(y * K + x) * Vec::kWidth + lane];
      }
    }
  }
}

template <int K>
void winograd_gradient_of(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  constexpr int T = 7 - K;
  const GradientScratch s(c, in_end - in_begin);
  float* input = c.scratch;
  float* grad = input + 36 * s.input.point;
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
      winograd_input<6, T, false>(tiles_of, s.input, t, at, far_input ? &next : nullptr, input);
      transform_gradient_tile<T>(c, s, at, far_grad ? &next : nullptr, grad + t * s.grad_row);
      at = next;
    }
    add_tile_products(c, s, input, grad, count, in_begin, in_end, begin == 0);
  }
  finish_kernels<K>(c, s.grad_row, in_begin, in_end);
}

void winograd_gradient(const WinogradGradCall& c, int64_t in_begin, int64_t in_end) {
  c.kernel == 3 ? winograd_gradient_of<3>(c, in_begin, in_end) : winograd_gradient_of<5>(c, in_begin, in_end);
}

int64_t winograd_gradient_scratch(const WinogradGradCall& c, int64_t in_channels) {
  return GradientScratch(c, in_channels).floats;
}

int64_t gradient_units(int64_t channels, int64_t panel_vectors, int64_t positions) {
  const int64_t lanes = panel_vectors * Vec::kWidth;
  return (channels + lanes - 1) / lanes * position_blocks(positions, panel_vectors);
}

}  // namespace
