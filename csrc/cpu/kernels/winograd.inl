// Winograd convolution F(m x m, r x r), NHWC (Lavin and Gray 2015, arXiv:1509.09308). A block of tiles is
// transformed, multiplied by the transformed weights in n x n small matrix products, and transformed back
// while it is in the second-level cache. Vectors run over channels throughout.
#pragma once
#include "cpu/kernels/gather.inl"
#include "cpu/kernels/stream.inl"
#include "cpu/winograd_points.h"

namespace {

// Coefficients of the product of (x^2 - p^2) over all pairs but `left_out`, by powers of x^2.
template <int N>
struct PairProduct {
  double c[WinogradPoints<N>::kPairs + 1];
  constexpr explicit PairProduct(int left_out) : c{} {
    c[0] = 1.0;
    int degree = 0;
    for (int q = 0; q < WinogradPoints<N>::kPairs; ++q) {
      if (q == left_out) continue;
      const double square = WinogradPoints<N>::kPair[q] * WinogradPoints<N>::kPair[q];
      ++degree;
      for (int k = degree; k > 0; --k) c[k] = c[k - 1] - square * c[k];
      c[0] *= -square;
    }
  }
};

// Terms of that product times x^(first): in[first], in[first + 2], ... The coefficients are template
// arguments in effect, for the compiler to see them as constants.
template <int N, int LeftOut, int K>
inline Vec product_terms(const Vec* in, int step, Vec sum) {
  if constexpr (K < 0) {
    return sum;
  } else {
    constexpr float coefficient = static_cast<float>(PairProduct<N>(LeftOut).c[K]);
    return product_terms<N, LeftOut, K - 1>(in, step,
                                            Vec::fma(Vec::set1(coefficient), in[2 * K * step], sum));
  }
}

template <int N, int LeftOut>
inline Vec product_of(const Vec* in, int step) {
  constexpr int degree = WinogradPoints<N>::kPairs - (LeftOut >= 0 ? 1 : 0);
  return product_terms<N, LeftOut, degree - 1>(in, step, in[2 * degree * step]);
}

template <int N, int Q>
inline void transform_input_pairs(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  if constexpr (Q < P::kPairs) {
    constexpr int zero = P::kZero ? 1 : 0;
    constexpr float point = static_cast<float>(P::kPair[Q]);
    const Vec even = product_of<N, Q>(in + (1 + zero) * in_step, in_step);
    Vec odd = product_of<N, Q>(in + zero * in_step, in_step);
    if constexpr (point != 1.0f) odd = odd * Vec::set1(point);
    out[(zero + 2 * Q) * out_step] = even + odd;
    out[(zero + 2 * Q + 1) * out_step] = even - odd;
    transform_input_pairs<N, Q + 1>(in, in_step, out, out_step);
  }
}

// One dimension of the input transform: in[i * in_step] -> out[i * out_step], N values each. Row i of the
// matrix holds the coefficients of the product of (x - q) over all finite points q but the i-th.
template <int N>
inline void transform_input(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  if constexpr (P::kZero) out[0] = product_of<N, -1>(in, in_step);
  transform_input_pairs<N, 0>(in, in_step, out, out_step);
  out[(N - 1) * out_step] = product_of<N, -1>(in + (P::kZero ? in_step : 0), in_step);
}

constexpr double power(double x, int k) { return k == 0 ? 1.0 : x * power(x, k - 1); }

// Product of the distances of point +p of pair Q to all other finite points; that of -p is as large, with the
// opposite sign where 0 is no point.
template <int N, int Q>
constexpr double pair_distance() {
  using P = WinogradPoints<N>;
  double product = P::kZero ? 2.0 * P::kPair[Q] * P::kPair[Q] : 2.0 * P::kPair[Q];
  for (int q = 0; q < P::kPairs; ++q)
    if (q != Q) product *= P::kPair[Q] * P::kPair[Q] - P::kPair[q] * P::kPair[q];
  return product;
}

template <int N>
constexpr double zero_distance() {
  double product = 1.0;
  for (int q = 0; q < WinogradPoints<N>::kPairs; ++q)
    product *= -WinogradPoints<N>::kPair[q] * WinogradPoints<N>::kPair[q];
  return product;
}

// The even (FIRST = 0) or odd (FIRST = 1) powers of a point times kernel values, over the point's distance.
template <int N, int K, int Q, int FIRST>
inline Vec kernel_terms(const Vec* g) {
  constexpr double point = WinogradPoints<N>::kPair[Q];
  constexpr float c0 = static_cast<float>(power(point, FIRST) / pair_distance<N, Q>()),
                  c2 = static_cast<float>(power(point, FIRST + 2) / pair_distance<N, Q>()),
                  c4 = static_cast<float>(power(point, FIRST + 4) / pair_distance<N, Q>());
  Vec sum = g[FIRST] * Vec::set1(c0);
  if constexpr (FIRST + 2 < K) sum = Vec::fma(g[FIRST + 2], Vec::set1(c2), sum);
  if constexpr (FIRST + 4 < K) sum = Vec::fma(g[FIRST + 4], Vec::set1(c4), sum);
  return sum;
}

template <int N, int K, int Q>
inline void transform_kernel_pairs(const Vec* g, Vec* out, int step) {
  using P = WinogradPoints<N>;
  if constexpr (Q < P::kPairs) {
    constexpr int zero = P::kZero ? 1 : 0;
    const Vec even = kernel_terms<N, K, Q, 0>(g), odd = kernel_terms<N, K, Q, 1>(g);
    out[(zero + 2 * Q) * step] = even + odd;
    out[(zero + 2 * Q + 1) * step] = P::kZero ? even - odd : odd - even;
    transform_kernel_pairs<N, K, Q + 1>(g, out, step);
  }
}

// One dimension of the kernel transform: K values -> N values; row i of the matrix holds the powers of point
// i over the product of its distances to the other points.
template <int N, int K>
inline void transform_kernel(const Vec* g, Vec* out, int step) {
  static_assert(K >= 2 && K <= 5);
  if constexpr (WinogradPoints<N>::kZero)
    out[0] = g[0] * Vec::set1(static_cast<float>(1.0 / zero_distance<N>()));
  transform_kernel_pairs<N, K, 0>(g, out, step);
  out[(N - 1) * step] = g[K - 1];
}

template <int N, int K, int Q>
inline Vec pair_terms(const Vec* part, Vec y) {
  if constexpr (Q == WinogradPoints<N>::kPairs) {
    return y;
  } else {
    constexpr float factor = static_cast<float>(power(WinogradPoints<N>::kPair[Q], K));
    if constexpr (factor == 1.0f)
      return pair_terms<N, K, Q + 1>(part, y + part[Q]);
    else
      return pair_terms<N, K, Q + 1>(part, Vec::fma(part[Q], Vec::set1(factor), y));
  }
}

template <int N, int M, int K>
inline void transform_output_rows(const Vec* in, int in_step, const Vec* sum, const Vec* difference, Vec* out,
                                  int out_step) {
  if constexpr (K < M) {
    using P = WinogradPoints<N>;
    const Vec* part = K % 2 ? difference : sum;
    constexpr float factor = static_cast<float>(power(P::kPair[0], K));
    Vec y = factor == 1.0f ? part[0] : part[0] * Vec::set1(factor);
    if constexpr (K == 0 && P::kZero) y = y + in[0];
    y = pair_terms<N, K, 1>(part, y);
    if constexpr (K == M - 1) y = y + in[(N - 1) * in_step];
    out[K * out_step] = y;
    transform_output_rows<N, M, K + 1>(in, in_step, sum, difference, out, out_step);
  }
}

// One dimension of the output transform: N values -> M values; row k of the matrix holds the k-th powers.
template <int N, int M>
inline void transform_output(const Vec* in, int in_step, Vec* out, int out_step) {
  using P = WinogradPoints<N>;
  constexpr int zero = P::kZero ? 1 : 0;
  Vec sum[P::kPairs], difference[P::kPairs];
#pragma GCC unroll 4
  for (int q = 0; q < P::kPairs; ++q) {
    const Vec plus = in[(zero + 2 * q) * in_step], minus = in[(zero + 2 * q + 1) * in_step];
    sum[q] = plus + minus;
    difference[q] = plus - minus;
  }
  transform_output_rows<N, M, 0>(in, in_step, sum, difference, out, out_step);
}

// Transformed tiles lie in blocks of this many input channels, tile by tile: rows of a product are at a
// distance that the compiler knows.
constexpr int64_t kBlockChannels = 32;

// Where transformed tiles are written: channel c of a tile lies in block c >> shift.
struct TileRows {
  int64_t row, point, block;  // distances of two tiles, of two points, of two blocks of channels
  int shift;
  int64_t offset(int64_t tile, int64_t channel) const {
    const int64_t number = channel >> shift;
    return tile * row + number * block + channel - (number << shift);
  }
};

// Where the parts of a block of tiles lie in scratch memory. Distances of points are kept off multiples of 4
// KB, which would put all points into one set of the first-level cache.
// Raw weights are gathered for a few input channels, transformed for some more, and all tiles multiplied by
// these.
constexpr int64_t kGatheredChannels = 16;
constexpr int64_t kRawChannels = 2 * kBlockChannels;

struct WinogradScratch {
  TileRows input;
  int64_t product_row, product_panel, product_point;
  int64_t kernel_point = 0, gathered = 0;  // of raw weights; 0 where they are packed
  int64_t floats;
  WinogradScratch(const WinogradCall& c, int points, int64_t panels) {
    if (c.raw) panels = 1;  // one after the other
    const int64_t w = Vec::kWidth, blocks = (c.in_channels + kBlockChannels - 1) / kBlockChannels;
    input = {kBlockChannels, blocks * c.block_tiles * kBlockChannels + w, c.block_tiles * kBlockChannels, 5};
    static_assert(kBlockChannels == 1 << 5);
    product_row = c.panel_vectors * w;
    product_panel = c.block_tiles * product_row;
    product_point = panels * product_panel + w;
    floats = points * (input.point + product_point);
    if (!c.raw) return;
    const int64_t size = c.points - c.tile + 1;
    kernel_point = kRawChannels * product_row + w;
    gathered = kGatheredChannels * size * size * product_row;
    floats += points * kernel_point + gathered;
  }
};

struct TilePlace {
  int64_t image, y, x;  // output pixel at the top left
  TilePlace(const WinogradCall& c, int64_t tile) {
    const int64_t row = tile / c.tile_columns;
    x = tile % c.tile_columns * c.tile;
    y = row % c.tile_rows * c.tile;
    image = row / c.tile_rows;
  }

  TilePlace next(const WinogradCall& c) const {
    TilePlace place = *this;
    if ((place.x += c.tile) < c.tile_columns * c.tile) return place;
    place.x = 0;
    if ((place.y += c.tile) < c.tile_rows * c.tile) return place;
    place.y = 0;
    ++place.image;
    return place;
  }
};

// Part of a tile's rows or columns that lies inside the image.
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t size) : begin(-first), end(size - first) {}
  bool holds(int64_t i) const { return i >= begin && i < end; }
};

inline float* at_place(const View& v, const TilePlace& at) {
  return v.data + at.image * v.image + at.y * v.row + at.x * v.pixel;
}

// Asks for a line of each of these pixels, to read (0) or to write (1).
template <int kWrites>
inline void fetch_pixels(const float* p, const View& v, int rows, int column_begin, int column_end) {
  for (int y = 0; y < rows; ++y)
    for (int x = column_begin; x < column_end; ++x)
      __builtin_prefetch(p + y * v.row + x * v.pixel, kWrites, 3);
}

// `next`: the tile, (its first columns lie in this one, mostly) whose input is fetched meanwhile, where it is
// far away (else null).
template <int N, int M, bool kPrologue>
void winograd_input(const WinogradCall& c, const TileRows& s, int64_t tile, const TilePlace& at,
                    const TilePlace* next, float* to) {
  const float* from = at_place(c.input, at);
  const float* ahead = next ? at_place(c.input, *next) : nullptr;
  const Inside rows(at.y - c.prologue.top, c.prologue.height),
      columns(at.x - c.prologue.left, c.prologue.width);
  for (int64_t channel = 0; channel < c.in_channels; channel += Vec::kWidth) {
    const int64_t lanes = c.in_channels - channel;
    auto load = [&](const float* p) {
      return lanes >= Vec::kWidth ? Vec::load(p) : Vec::load_first(p, lanes);
    };
    if (ahead) fetch_pixels<0>(ahead + channel, c.input, N, N - M, N);
    const Vec scale = kPrologue ? load(c.prologue.scale + channel) : Vec::zero();
    const Vec shift = kPrologue ? load(c.prologue.shift + channel) : Vec::zero();
    Vec t[N * N];
#pragma GCC unroll 8
    for (int y = 0; y < N; ++y) {
      Vec d[N];
      const float* p = from + y * c.input.row + channel;
#pragma GCC unroll 8
      for (int x = 0; x < N; ++x, p += c.input.pixel)
        if constexpr (kPrologue)
          d[x] = rows.holds(y) && columns.holds(x)
                     ? apply(c.prologue.activation, Vec::fma(load(p), scale, shift))
                     : Vec::zero();
        else
          d[x] = load(p);
      transform_input<N>(d, 1, t + y * N, 1);
    }
    float* out = to + s.offset(tile, channel);
#pragma GCC unroll 8
    for (int x = 0; x < N; ++x) {
      Vec v[N];
      transform_input<N>(t + x, N, v, 1);
#pragma GCC unroll 8
      for (int y = 0; y < N; ++y) v[y].store(out + (y * N + x) * s.point);
    }
  }
}

template <int N, int M>
void winograd_output(const WinogradCall& c, const WinogradScratch& s, int64_t tile, const TilePlace& at,
                     const TilePlace* next, const float* product, int64_t panel_channel) {
  const int64_t rows = c.height - at.y < M ? c.height - at.y : M;
  const int64_t columns = c.width - at.x < M ? c.width - at.x : M;
  const int64_t end = c.channels - panel_channel < s.product_row ? c.channels - panel_channel : s.product_row;
  float* const to = at_place(c.output, at) + panel_channel;
  const float* const added = c.residual.data ? at_place(c.residual, at) + panel_channel : nullptr;
  const float* const ahead = next ? at_place(c.output, *next) + panel_channel : nullptr;
  for (int64_t channel = 0; channel < end; channel += Vec::kWidth) {
    const int64_t lanes = end - channel < Vec::kWidth ? end - channel : Vec::kWidth;
    const float* from = product + tile * s.product_row + channel;
    if (ahead) fetch_pixels<1>(ahead + channel, c.output, M, 0, M);
    Vec t[M * N];
#pragma GCC unroll 8
    for (int x = 0; x < N; ++x) {
      Vec m[N];
#pragma GCC unroll 8
      for (int y = 0; y < N; ++y) m[y] = Vec::load(from + (y * N + x) * s.product_point);
      transform_output<N, M>(m, 1, t + x, N);
    }
    const Vec scale = c.scale ? Vec::load(c.scale + panel_channel + channel) : Vec::set1(1.0f);
    const Vec shift = c.shift ? Vec::load(c.shift + panel_channel + channel) : Vec::zero();
#pragma GCC unroll 8
    for (int y = 0; y < M; ++y) {
      if (y >= rows) break;
      Vec v[M];
      transform_output<N, M>(t + y * N, 1, v, 1);
      float* out = to + y * c.output.row + channel;
      const float* residual = added ? added + y * c.residual.row + channel : nullptr;
#pragma GCC unroll 8
      for (int x = 0; x < M; ++x) {
        if (x >= columns) break;
        Vec r = c.scale ? Vec::fma(v[x], scale, shift) : v[x] + shift;
        if (residual) r = r + Vec::load_first(residual + x * c.residual.pixel, lanes);
        apply_short(c.activation, r).store_first(out + x * c.output.pixel, lanes);
      }
    }
  }
  if (in_registers(c.activation)) return;
  for (int64_t y = 0; y < rows; ++y)
    activate_pixels(to + y * c.output.row, c.output.pixel, columns, end, c.activation);
}

// R tiles x channels times channels x (NV vectors): `a` begins the first block of channels, `block` is the
// distance of the next. Added to what is there, or in its place.
template <int NV, int R>
void winograd_multiply(const float* a, int64_t block, const float* b, int64_t channels, float* out,
                       int64_t out_row, const Stream& stream, bool adds) {
  Vec acc[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      acc[r][j] = adds ? Vec::load(out + r * out_row + j * Vec::kWidth) : Vec::zero();
  for (; channels > 0; channels -= kBlockChannels, a += block) {
    const int64_t length = channels < kBlockChannels ? channels : kBlockChannels;
    for (int64_t k = 0; k < length; ++k, b += NV * Vec::kWidth) {
      stream.fetch(b);
      Vec w[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) w[j] = Vec::load(b + j * Vec::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec x = Vec::set1(a[r * kBlockChannels + k]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[r][j] = Vec::fma(x, w[j], acc[r][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[r][j].store(out + r * out_row + j * Vec::kWidth);
}

template <int NV, int R = kWinogradRows[NV - 1]>
inline void winograd_multiply_rows(int64_t rows, const float* a, int64_t block, const float* b,
                                   int64_t channels, float* out, int64_t out_row, const Stream& stream,
                                   bool adds) {
  if (rows == R) return winograd_multiply<NV, R>(a, block, b, channels, out, out_row, stream, adds);
  if constexpr (R > 1)
    winograd_multiply_rows<NV, R - 1>(rows, a, block, b, channels, out, out_row, stream, adds);
}

// One panel of one point: all tiles of a block, by register blocks of equal size. `ahead`: where the weights
// of the next panel lie, in floats from these; 0 where they are not fetched.
template <int NV>
void winograd_product(const WinogradCall& c, const WinogradScratch& s, const float* input,
                      const float* weight, int64_t ahead, float* product, int64_t tiles) {
  const int64_t blocks = (tiles + kWinogradRows[NV - 1] - 1) / kWinogradRows[NV - 1];
  for (int64_t t = 0; t < blocks; ++t) {
    const int64_t begin = tiles * t / blocks, end = tiles * (t + 1) / blocks;
    const Stream stream = ahead ? Stream::share<NV>(ahead, t, blocks) : Stream{};
    winograd_multiply_rows<NV>(end - begin, input + begin * s.input.row, s.input.block, weight, c.in_channels,
                               product + begin * s.product_row, s.product_row, stream, false);
  }
}

// Point by point, all panels of a point: its transformed tiles stay in the first-level cache meanwhile, and
// weights are read in the order in which they lie.
void winograd_products(const WinogradCall& c, const WinogradScratch& s, int points, const float* input,
                       float* product, int64_t tiles, int64_t panel_begin, int64_t panel_end) {
  static_assert(kWinogradVectors == 2, "add cases below");
  const int64_t w = Vec::kWidth, lanes = c.panel_vectors * w, vectors = (c.channels + w - 1) / w;
  const int64_t point_floats = vectors * w * c.in_channels, panel_floats = lanes * c.in_channels;
  const int64_t last = panel_end * c.panel_vectors < vectors ? panel_end * c.panel_vectors : vectors;
  const bool streams = (last - panel_begin * c.panel_vectors) * w * c.in_channels * points > kResidentFloats;
  for (int point = 0; point < points; ++point) {
    const float* weight = c.weight + point * point_floats + panel_begin * panel_floats;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel, weight += panel_floats) {
      const int64_t next =
          panel + 1 < panel_end ? panel_floats : point_floats - (panel_end - 1 - panel_begin) * panel_floats;
      const auto run = vectors - panel * c.panel_vectors == 1 ? winograd_product<1>
                       : c.panel_vectors == 1                 ? winograd_product<1>
                                                              : winograd_product<2>;
      run(c, s, input + point * s.input.point, weight, streams ? next : 0,
          product + point * s.product_point + (panel - panel_begin) * s.product_panel, tiles);
    }
  }
}

template <int N, int K>
void transform_kernels(const float* gathered, int64_t inputs, int64_t lanes, float* to, int64_t point) {
  for (int64_t i = 0; i < inputs; ++i, gathered += K * K * lanes, to += lanes)
    for (int64_t lane = 0; lane < lanes; lane += Vec::kWidth) {
      Vec t[N * K];
#pragma GCC unroll 5
      for (int x = 0; x < K; ++x) {
        Vec g[K];
#pragma GCC unroll 5
        for (int y = 0; y < K; ++y) g[y] = Vec::load(gathered + (y * K + x) * lanes + lane);
        transform_kernel<N, K>(g, t + x, K);
      }
#pragma GCC unroll 8
      for (int y = 0; y < N; ++y) {
        Vec u[N];
        transform_kernel<N, K>(t + y * K, u, 1);
#pragma GCC unroll 8
        for (int x = 0; x < N; ++x) u[x].store(to + (y * N + x) * point + lane);
      }
    }
}

// Asks for raw weights while others are multiplied: those of `inputs` input channels by `lanes` output
// channels, some lines at a time.
class RawFetch {
 public:
  RawFetch(const WinogradCall& c, int64_t size, const float* weight, int64_t inputs, int64_t lanes)
      : from_(weight), size_(size), row_(c.raw->row), column_(c.raw->column) {
    const bool by_lanes = c.raw->out < c.raw->in;  // these are closer to each other
    const int64_t distance = by_lanes ? c.raw->out : c.raw->in;
    outer_ = by_lanes ? inputs : lanes;
    outer_step_ = by_lanes ? c.raw->in : c.raw->out;
    run_ = (by_lanes ? lanes : inputs) * distance;
    if (distance == 1) return;
    size_ = 1;  // whole kernels lie one behind the other
    if (row_ < 0) from_ += (size - 1) * (row_ + column_);
  }
  int64_t lines() const { return outer_ * size_ * size_ * ((run_ + kLineFloats - 1) / kLineFloats); }
  void fetch(int64_t lines) {
    for (; lines > 0 && at_ < outer_; --lines) {
      __builtin_prefetch(from_ + at_ * outer_step_ + y_ * row_ + x_ * column_ + line_, 0, 2);
      if ((line_ += kLineFloats) < run_) continue;
      line_ = 0;
      if (++x_ < size_) continue;
      x_ = 0;
      if (++y_ < size_) continue;
      y_ = 0;
      ++at_;
    }
  }

 private:
  const float* from_;
  int64_t size_, row_, column_, outer_, outer_step_, run_;
  int64_t at_ = 0, y_ = 0, x_ = 0, line_ = 0;
};

template <int NV>
void raw_product(const WinogradScratch& s, const float* input, const float* weight, int64_t channels,
                 float* product, int64_t tiles, bool adds) {
  const int64_t blocks = (tiles + kWinogradRows[NV - 1] - 1) / kWinogradRows[NV - 1];
  for (int64_t t = 0; t < blocks; ++t) {
    const int64_t begin = tiles * t / blocks, end = tiles * (t + 1) / blocks;
    winograd_multiply_rows<NV>(end - begin, input + begin * s.input.row, s.input.block, weight, channels,
                               product + begin * s.product_row, s.product_row, Stream{}, adds);
  }
}

// One panel of all points, its weights transformed for some input channels at a time, which stay in the
// second-level cache while all tiles of the block meet them.
template <int N, int M>
void raw_products(const WinogradCall& c, const WinogradScratch& s, const float* input, float* product,
                  int64_t tiles, int64_t panel, int64_t panel_end, float* kernels) {
  static_assert(kWinogradVectors == 2, "add cases below");
  constexpr int K = N - M + 1;
  float* gathered = kernels + N * N * s.kernel_point;
  const auto lanes_of = [&](int64_t p) {
    const int64_t left = c.channels - p * s.product_row;
    return left < s.product_row ? left : s.product_row;
  };
  const int64_t lanes = lanes_of(panel), stored = (lanes + Vec::kWidth - 1) / Vec::kWidth * Vec::kWidth;
  const float* weight = c.weight + panel * s.product_row * c.raw->out;
  for (int64_t first = 0; first < c.in_channels; first += kRawChannels) {
    const int64_t inputs = c.in_channels - first < kRawChannels ? c.in_channels - first : kRawChannels;
    for (int64_t i = 0; i < inputs; i += kGatheredChannels) {
      const int64_t count = inputs - i < kGatheredChannels ? inputs - i : kGatheredChannels;
      gather_kernels({weight + (first + i) * c.raw->in, c.raw->out, c.raw->in, c.raw->row, c.raw->column, K,
                      K, count, lanes, gathered, K * K * stored, stored});
      transform_kernels<N, K>(gathered, count, stored, kernels + i * stored, s.kernel_point);
    }
    const bool same_panel = first + inputs < c.in_channels;
    const int64_t next = same_panel ? first + inputs : 0, next_panel = same_panel ? panel : panel + 1;
    const int64_t rest = c.in_channels - next;
    RawFetch ahead(c, K, c.weight + next_panel * s.product_row * c.raw->out + next * c.raw->in,
                   rest < kRawChannels ? rest : kRawChannels,
                   next_panel < panel_end ? lanes_of(next_panel) : 0);
    const int64_t lines = (ahead.lines() + N * N - 1) / (N * N);
    const auto run = stored == Vec::kWidth ? raw_product<1> : raw_product<2>;
    for (int point = 0; point < N * N; ++point) {
      ahead.fetch(lines);
      run(s, input + point * s.input.point + first / kBlockChannels * s.input.block,
          kernels + point * s.kernel_point, inputs, product + point * s.product_point, tiles, first > 0);
    }
  }
}

template <int N, int M>
void winograd_tiles(const WinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
                    int64_t panel_end) {
  const WinogradScratch s(c, N * N, panel_end - panel_begin);
  float* input = c.scratch;
  float* product = c.scratch + N * N * s.input.point;
  const int64_t pixels = (tile_end - tile_begin) * M * M;
  const bool far_input = c.far_input || pixels * c.in_channels > kNearFloats;
  const bool far_output = pixels * c.channels > kNearFloats;
  for (int64_t begin = tile_begin; begin < tile_end; begin += c.block_tiles) {
    const int64_t tiles = tile_end - begin < c.block_tiles ? tile_end - begin : c.block_tiles;
    const TilePlace first(c, begin);
    TilePlace at = first;
    for (int64_t t = 0; t < tiles; ++t) {
      const TilePlace next = at.next(c);
      if (c.prologue.scale)
        winograd_input<N, M, true>(c, s.input, t, at, far_input ? &next : nullptr, input);
      else
        winograd_input<N, M, false>(c, s.input, t, at, far_input ? &next : nullptr, input);
      at = next;
    }
    // Raw weights go panel by panel, packed ones through all panels at once.
    const int64_t panels = c.raw ? 1 : panel_end - panel_begin;
    for (int64_t from = panel_begin; from < panel_end; from += panels) {
      if (c.raw)
        raw_products<N, M>(c, s, input, product, tiles, from, panel_end, product + N * N * s.product_point);
      else
        winograd_products(c, s, N * N, input, product, tiles, panel_begin, panel_end);
      at = first;
      for (int64_t t = 0; t < tiles; ++t) {
        const TilePlace next = at.next(c);
        for (int64_t panel = from; panel < from + panels; ++panel)
          winograd_output<N, M>(c, s, t, at, far_output ? &next : nullptr,
                                product + (panel - from) * s.product_panel, panel * s.product_row);
        at = next;
      }
    }
  }
}

void winograd(const WinogradCall& c, int64_t tile_begin, int64_t tile_end, int64_t panel_begin,
              int64_t panel_end) {
  switch (c.points * 16 + c.tile) {
    case 4 * 16 + 2:
      return winograd_tiles<4, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 5 * 16 + 3:
      return winograd_tiles<5, 3>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 6 * 16 + 4:
      return winograd_tiles<6, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 6:
      return winograd_tiles<8, 6>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 6 * 16 + 2:
      return winograd_tiles<6, 2>(c, tile_begin, tile_end, panel_begin, panel_end);
    case 8 * 16 + 4:
      return winograd_tiles<8, 4>(c, tile_begin, tile_end, panel_begin, panel_end);
  }
}

int64_t winograd_scratch(const WinogradCall& c, int64_t panels) {
  return WinogradScratch(c, static_cast<int>(c.points * c.points), panels).floats;
}

int64_t winograd_rows(int64_t panel_vectors) { return kWinogradRows[panel_vectors - 1]; }

// By float32 arithmetic; for one input channel after the other.
void quick_winograd_weights(const WinogradWeightsCall& c) {
  switch (c.points * 16 + c.size) {
    case 4 * 16 + 3:
      return transform_kernels<4, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 5 * 16 + 3:
      return transform_kernels<5, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 6 * 16 + 3:
      return transform_kernels<6, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 8 * 16 + 3:
      return transform_kernels<8, 3>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 6 * 16 + 5:
      return transform_kernels<6, 5>(c.kernels, c.inputs, c.lanes, c.output, c.step);
    case 8 * 16 + 5:
      return transform_kernels<8, 5>(c.kernels, c.inputs, c.lanes, c.output, c.step);
  }
}

// Plain loops over lanes, which the compiler turns into vectors of doubles.
void exact_winograd_weights(const WinogradWeightsCall& c, const float* kernels, float* out) {
  constexpr int64_t kLanes = Vec::kPanelVectors * Vec::kWidth, kSize = 5;
  double rows[kSize * kLanes];
  for (int64_t i = 0; i < c.points; ++i) {
    for (int64_t x = 0; x < c.size; ++x) {
      double* row = rows + x * kLanes;
      for (int64_t k = 0; k < c.lanes; ++k) row[k] = 0.0;
      for (int64_t y = 0; y < c.size; ++y) {
        const double factor = c.matrix[i * c.size + y];
        const float* kernel = kernels + (y * c.size + x) * c.lanes;
        for (int64_t k = 0; k < c.lanes; ++k) row[k] += factor * static_cast<double>(kernel[k]);
      }
    }
    for (int64_t j = 0; j < c.points; ++j, out += c.step) {
      double sum[kLanes] = {};
      for (int64_t x = 0; x < c.size; ++x) {
        const double factor = c.matrix[j * c.size + x];
        for (int64_t k = 0; k < c.lanes; ++k) sum[k] += factor * rows[x * kLanes + k];
      }
      for (int64_t k = 0; k < c.lanes; ++k) out[k] = static_cast<float>(sum[k]);
    }
  }
}

void winograd_weights(const WinogradWeightsCall& c) {
  if (c.quick) return quick_winograd_weights(c);
  for (int64_t i = 0; i < c.inputs; ++i)
    exact_winograd_weights(c, c.kernels + i * c.size * c.size * c.lanes, c.output + i * c.lanes);
}

}  // namespace
