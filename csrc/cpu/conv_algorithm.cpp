#include "cpu/conv_algorithm.h"

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/conv_job.h"
#include "cpu/first_winograd.h"
#include "cpu/fixed_pack.h"
#include "cpu/winograd_points.h"

namespace cnnfast::cpu {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What is compiled, see kernels/winograd.inl.
constexpr std::array<ConvAlgorithm, 8> kWinograd{
    {{4, 2}, {5, 3}, {6, 4}, {8, 6}, {9, 7}, {6, 2}, {8, 4}, {10, 6}}};

// See kernels/winograd_fixed.inl.
constexpr std::array<ConvAlgorithm, 11> kFixed{{{4, 2, true},
                                                {5, 3, true},
                                                {6, 4, true},
                                                {7, 5, true},
                                                {8, 6, true},
                                                {8, 4, true},
                                                {FirstWinograd::kPoints, FirstWinograd::kTile, true, 2},
                                                {9, 4, true, 2},
                                                {11, 5, true, 2},
                                                {13, 6, true, 2},
                                                {15, 7, true, 2}}};

// For kernels of one row or column.
constexpr std::array<ConvAlgorithm, 8> kLines{
    {{6, 4}, {8, 6}, {8, 4}, {9, 5}, {8, 2}, {9, 3}, {10, 4}, {10, 2}}};
constexpr std::array<ConvAlgorithm, 7> kFixedLines{
    {{6, 4, true}, {8, 6, true}, {8, 4, true}, {9, 5, true}, {9, 3, true}, {10, 4, true}, {10, 2, true}}};
// Transforms from one side err less than those from both: so many more points have the same errors.
constexpr int64_t kMorePoints = 2;

bool can_serve(const ConvGeometry& g, const ConvAlgorithm& a) {
  // Of dilated kernels every dilation-th pixel is in the same tile.
  const bool plain = g.stride_h == a.stride && g.stride_w == a.stride && g.dilation_h == g.dilation_w;
  const int64_t kernel = a.stride == 1 ? a.points - a.tile + 1 : a.first_layer() ? FirstWinograd::kKernel : 3;
  if (a.first_layer() && (g.groups > 1 || g.in_channels > FirstWinograd::kMostChannels)) return false;
  const bool dilates = !a.fixed && !g.line();
  return plain && (g.dilation_h == 1 || dilates) && !g.narrow_groups() &&
         std::max(g.kernel_h, g.kernel_w) == kernel &&
         std::min(g.kernel_h, g.kernel_w) == (g.line() ? 1 : kernel);
}

// Costs are cycles of one core. Measured on an AMD EPYC (Zen 4) with kernels/winograd.inl alone, see
// docs/performance.md; ratios, not seconds, decide.
constexpr double kDirectEfficiency = 0.88;
constexpr double kProductEfficiency = 0.93;
constexpr double kCyclesPerByte = 0.3;  // weights streamed from memory by all cores together

// kernels/conv16.inl with products of pairs as instructions, by whole layers of networks.
constexpr double kStretchCycles = 5;
constexpr double kPixelCycles = 12;
constexpr double kFinishCycles = 4;

// Below this much work the transform of weights that change is no small part of the whole.
constexpr double kTrainedWinogradFlops = 2e7;

// Widening or rounding a value.
constexpr double kWideningCycles = 0.15;
// Short dot products of widened values, those of first layers, take so much longer than conv_cycles says.
constexpr int64_t kShortDepth = 64;
constexpr double kShortLoss = 1.67;

// kernels/winograd_fixed.inl: products, and for every point of a tile's vector of channels the way there,
// which includes scaling, and back.
constexpr double kFixedEfficiency = 0.9;
// A line has fewer points than the vectors that scale them have lanes.
double fixed_in_cycles(const ConvGeometry& g, const ConvAlgorithm& a) {
  if (a.stride == 2) return a.tile >= 6 ? 22 : 16;
  return g.line() ? 18 : a.points >= 8 ? 20 : 14;
}
double fixed_out_cycles(const ConvGeometry& g, const ConvAlgorithm& a) {
  if (a.stride == 2) return a.tile >= 6 ? 10 : 7;
  return g.line() ? 14 : a.points >= 8 ? 18 : 13;
}
// kernels/winograd_first.inl: a block's tile and a vector of its output channels, and what a channel of the
// image adds to them.
constexpr double kFirstTileCycles = 100, kFirstTileChannelCycles = 160;
constexpr double kFirstVectorCycles = 200, kFirstVectorChannelCycles = 101;
double first_cycles(const ConvGeometry& g, int64_t tiles) {
  const auto channels = static_cast<double>(g.in_channels);
  const auto vectors = static_cast<double>(divide_up(g.out_channels, kernels().vector_width));
  const double vector = kFirstVectorCycles + kFirstVectorChannelCycles * channels;
  return static_cast<double>(tiles) *
         (kFirstTileCycles + kFirstTileChannelCycles * channels + vectors * vector);
}
// Larger tiles have larger errors: they must be worth it.
double error_factor(const ConvGeometry& g, const ConvAlgorithm& a) {
  const int64_t points = a.stride == 2 ? a.tile + 1 : a.points - (g.line() ? kMorePoints : 0);
  return points >= 8 ? 1.08 : points == 7 ? 1.04 : 1.0;
}

// Transforming one vector of channels of one tile, there and back.
double transform_cycles(const ConvGeometry& g) {
  const int64_t points = g.algorithm.points;
  const double per_point = g.line() ? 12 : points >= 10 ? 44 : points >= 8 ? 36 : 20;
  return per_point * static_cast<double>(g.products());
}

// The same layer by another algorithm.
ConvGeometry by(ConvGeometry g, const ConvAlgorithm& a) {
  g.algorithm = a;
  return g;
}

// Arithmetic and streaming overlap, though not wholly.
double overlapped(double compute, double stream) {
  return std::max(compute, stream) + 0.3 * std::min(compute, stream);
}

double fixed_cycles(const ConvGeometry& g, const ConvAlgorithm& a) {
  const auto in = static_cast<double>(round_up(g.group_in(), 2));
  const auto in_vectors = static_cast<double>(divide_up(g.group_in(), kernels().vector_width));
  const auto out_vectors = static_cast<double>(divide_up(g.group_out(), kernels().vector_width));
  const ConvGeometry tiled = by(g, a);
  if (a.first_layer()) return first_cycles(g, winograd_tiles(tiled));
  const auto points = static_cast<double>(g.groups * tiled.products());
  const auto tiles = static_cast<double>(winograd_tiles(tiled));
  const double product = in / 2 * out_vectors / kFixedEfficiency;
  const double transforms = fixed_in_cycles(g, a) * in_vectors + fixed_out_cycles(g, a) * out_vectors;
  const double weight_bytes = static_cast<double>(g.groups * tiled.kernel_products()) * 2 * in * out_vectors *
                              static_cast<double>(kernels().vector_width);
  return error_factor(g, a) *
         overlapped(tiles * points * (product + transforms), weight_bytes * kCyclesPerByte);
}

}  // namespace

double conv_cycles(const ConvGeometry& g, const ConvAlgorithm& a) {
  if (a.fixed) return fixed_cycles(g, a);
  const auto width = static_cast<double>(kernels().vector_width);
  const auto in = static_cast<double>(g.group_in());
  const auto out_vectors = static_cast<double>(divide_up(g.group_out(), kernels().vector_width));
  const auto in_vectors = static_cast<double>(divide_up(g.group_in(), kernels().vector_width));
  const auto groups = static_cast<double>(g.groups);
  const double weights = 4.0 * groups * in * out_vectors * width;
  if (a.direct()) {
    const double pixels = static_cast<double>(g.images * g.out_height * g.out_width);
    const double taps = static_cast<double>(g.kernel_h * g.kernel_w);
    return overlapped(groups * pixels * taps * in * out_vectors / kDirectEfficiency,
                      weights * taps * kCyclesPerByte);
  }
  const ConvGeometry tiled = by(g, a);
  const auto points = static_cast<double>(tiled.products());
  const auto tiles = static_cast<double>(winograd_tiles(tiled));
  const double products = groups * tiles * points * in * out_vectors / kProductEfficiency;
  const double transforms = groups * tiles * transform_cycles(tiled) * (0.6 * in_vectors + 0.4 * out_vectors);
  return overlapped(products + transforms, weights * points * kCyclesPerByte);
}

double widened_cycles(const ConvGeometry& g) {
  const auto pixels = static_cast<double>(g.images * g.out_height * g.out_width);
  const double values =
      pixels * static_cast<double>(g.in_channels * g.stride_h * g.stride_w + g.out_channels);
  const double cycles = conv_cycles(g, g.algorithm) + kWideningCycles * values;
  return g.algorithm.direct() && g.depth() <= kShortDepth ? kShortLoss * cycles : cycles;
}

double pair_cycles(const ConvGeometry& g) {
  const auto pairs = static_cast<double>(divide_up(g.depth(), 2));
  const auto out_vectors = static_cast<double>(divide_up(g.group_out(), kernels().vector_width));
  // Stretches of values side by side are gathered, a vector at a time, then every vector of sums is finished.
  const bool adjacent = g.dilation_w == 1 && g.groups == 1;
  const auto stretches = static_cast<double>(g.kernel_h * (adjacent ? 1 : g.kernel_w));
  const double gathered =
      kStretchCycles * stretches + 2 * pairs / static_cast<double>(kernels().vector_width);
  const double finished = kPixelCycles + kFinishCycles * out_vectors;
  const double pixels = static_cast<double>(g.groups * g.images * g.out_height * g.out_width);
  const double weights = 4.0 * static_cast<double>(g.groups * kernels().vector_width) * pairs * out_vectors;
  return overlapped(pixels * (pairs * out_vectors / kDirectEfficiency + gathered + finished),
                    weights * kCyclesPerByte);
}

namespace {

// Rows of the kernel transform: the powers of a point over the product of its distances to the other points.
template <int N>
std::vector<double> kernel_matrix(int64_t kernel) {
  using P = WinogradPoints<N>;
  std::vector<double> point;
  if (P::kZero) point.push_back(0.0);
  for (const double p : P::kPair) {
    point.push_back(p);
    point.push_back(-p);
  }
  std::vector<double> matrix(static_cast<size_t>(N * kernel), 0.0);
  for (int i = 0; i < N - 1; ++i) {
    double distances = 1.0;
    for (int j = 0; j < N - 1; ++j)
      if (j != i) distances *= point[i] - point[j];
    double power = 1.0;
    for (int64_t k = 0; k < kernel; ++k, power *= point[i]) matrix[i * kernel + k] = power / distances;
  }
  matrix[N * kernel - 1] = 1.0;
  return matrix;
}

// Of stride 2: outer taps as a kernel of two, then the middle one as it is.
template <int N>
std::vector<double> strided_matrix() {
  const std::vector<double> outer = kernel_matrix<N>(2);
  std::vector<double> matrix;
  for (int i = 0; i < N; ++i) matrix.insert(matrix.end(), {outer[2 * i], 0.0, outer[2 * i + 1]});
  matrix.insert(matrix.end(), {0.0, 1.0, 0.0});
  return matrix;
}

struct KernelMatrix {
  int64_t points, tile;
  std::vector<double> rows;
};

const std::vector<double>& kernel_matrix_of(const ConvAlgorithm& a) {
  static const std::array<KernelMatrix, 19> matrices{{{4, 2, kernel_matrix<4>(3)},
                                                      {5, 3, kernel_matrix<5>(3)},
                                                      {6, 4, kernel_matrix<6>(3)},
                                                      {7, 5, kernel_matrix<7>(3)},
                                                      {7, 4, kernel_matrix<7>(4)},
                                                      {8, 6, kernel_matrix<8>(3)},
                                                      {9, 7, kernel_matrix<9>(3)},
                                                      {6, 2, kernel_matrix<6>(5)},
                                                      {8, 4, kernel_matrix<8>(5)},
                                                      {9, 5, kernel_matrix<9>(5)},
                                                      {10, 6, kernel_matrix<10>(5)},
                                                      {8, 2, kernel_matrix<8>(7)},
                                                      {9, 3, kernel_matrix<9>(7)},
                                                      {10, 4, kernel_matrix<10>(7)},
                                                      {10, 2, kernel_matrix<10>(9)},
                                                      {9, 4, strided_matrix<5>()},
                                                      {11, 5, strided_matrix<6>()},
                                                      {13, 6, strided_matrix<7>()},
                                                      {15, 7, strided_matrix<8>()}}};
  return std::find_if(matrices.begin(), matrices.end(),
                      [&](const KernelMatrix& m) { return m.points == a.points && m.tile == a.tile; })
      ->rows;
}

}  // namespace

std::vector<ConvAlgorithm> possible_algorithms(const ConvGeometry& g, int64_t largest_tile) {
  std::vector<ConvAlgorithm> possible{ConvAlgorithm{}};
  if (largest_tile == 0) return possible;
  const auto add = [&](const auto& algorithms, int64_t most_points) {
    for (const ConvAlgorithm& a : algorithms)
      if (a.points <= most_points && can_serve(g, a)) possible.push_back(a);
  };
  g.line() ? add(kLines, largest_tile + 2 + kMorePoints) : add(kWinograd, largest_tile + 2);
  return possible;
}

ConvAlgorithm choose_algorithm(const ConvGeometry& g, int64_t largest_tile) {
  ConvAlgorithm best;
  double best_cost = conv_cycles(g, best);
  for (const ConvAlgorithm& a : possible_algorithms(g, largest_tile)) {
    const double c = conv_cycles(g, a);
    if (c < best_cost) {
      best = a;
      best_cost = c;
    }
  }
  return best;
}

int64_t largest_tile16(int64_t largest_tile) {
  if (largest_tile < kLargestTile) return largest_tile;
  return has_fixed_winograd() ? kLargestTile16 - 1 : kLargestTile16;
}

ConvAlgorithm trained_algorithm(const ConvGeometry& g) {
  if (g.flops() < kTrainedWinogradFlops || g.dilation_h > 1) return {};
  const bool all_points = g.line() || g.kernel_h == 5;
  return choose_algorithm(g, g.bfloat16 ? kLargestTile16 : all_points ? kLargestTile : 4);
}

std::optional<ConvAlgorithm> choose_fixed(const ConvGeometry& g) {
  std::optional<ConvAlgorithm> best;
  if (!has_fixed_winograd()) return best;
  const auto choose = [&](const auto& algorithms) {
    for (const ConvAlgorithm& a : algorithms)
      if (can_serve(g, a) && (!best || fixed_cycles(g, a) < fixed_cycles(g, *best))) best = a;
  };
  g.line() ? choose(kFixedLines) : choose(kFixed);
  return best;
}

Overreach overreach(const ConvGeometry& g) {
  if (g.algorithm.direct() || g.algorithm.fixed) return {};
  const int64_t height = g.tile_height(), width = g.tile_width();
  return {tile_rows(g.out_height, height, g.dilation_h) * height - g.out_height,
          tile_rows(g.out_width, width, g.dilation_w) * width - g.out_width};
}

const double* kernel_transform(const ConvAlgorithm& a) { return kernel_matrix_of(a).data(); }

}  // namespace cnnfast::cpu
