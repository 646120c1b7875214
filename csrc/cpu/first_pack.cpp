#include "cpu/first_pack.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/first_winograd.h"
#include "cpu/fixed_winograd.h"

namespace cnnfast::cpu {
namespace {

constexpr int kPoints = FirstWinograd::kPoints, kTaps = FirstWinograd::kTaps,
              kKernel = FirstWinograd::kKernel;

// One kernel's plane of taps at rows `odd_rows` + 0, 2, 4, 6 and columns likewise, at one point.
double transformed(const double* matrix, const float* weight, const WeightStrides& strides, int y, int x,
                   int odd_rows, int odd_columns) {
  double sum = 0.0;
  for (int i = 0; 2 * i + odd_rows < kKernel; ++i)
    for (int j = 0; 2 * j + odd_columns < kKernel; ++j)
      sum += matrix[y * kTaps + i] * matrix[x * kTaps + j] *
             static_cast<double>(
                 weight[(2 * i + odd_rows) * strides.row + (2 * j + odd_columns) * strides.column]);
  return sum /
         (static_cast<double>(FirstWinograd::balance(y)) * static_cast<double>(FirstWinograd::balance(x)));
}

// Of one output channel: column, pair, row, channel of the pair.
std::vector<double> transformed_kernels(const ConvGeometry& g, const float* weight,
                                        const WeightStrides& strides) {
  const double* matrix = kernel_transform(g.algorithm);
  const auto channels = static_cast<int>(g.in_channels);
  std::vector<double> all;
  for (int x = 0; x < kPoints; ++x) {
    const int pairs = FirstWinograd::pairs(channels, x);
    for (int pair = 0; pair < pairs; ++pair)
      for (int y = 0; y < kPoints; ++y)
        for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
          const int column = i % pairs;
          all.push_back(transformed(matrix, weight + column % channels * strides.in, strides, y, x, i / pairs,
                                    column / channels));
        }
  }
  return all;
}

// As small as the largest number's 16 bits and the 32 bits of a point's sum allow, with every number rounded.
double scale_of(const ConvGeometry& g, const std::vector<double>& all) {
  const auto channels = static_cast<int>(g.in_channels);
  const double room = 2147483647.0 / kFixedLimit - 2.0 * channels;
  double bound = 1e-30, sum_of_all = 0.0;
  const double* from = all.data();
  for (int x = 0; x < kPoints; ++x)
    for (int y = 0, pairs = FirstWinograd::pairs(channels, x); y < kPoints; ++y) {
      double sum = 0.0;
      for (int pair = 0; pair < pairs; ++pair)
        for (int i = 0; i < 2; ++i) {
          const double size = std::abs(from[(pair * kPoints + y) * 2 + i]);
          bound = std::max(bound, size / 32767.0);
          sum += size;
        }
      bound = std::max(bound, sum / room);
      sum_of_all += sum;
      if (y + 1 == kPoints) from += pairs * kPoints * 2;
    }
  return std::isfinite(sum_of_all) ? bound * 1.00001 : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

int64_t first_layer_pairs(const ConvGeometry& g) {
  return static_cast<int64_t>(FirstWinograd::all_pairs(static_cast<int>(g.in_channels))) * kPoints;
}

void pack_first_layer(const ConvGeometry& g, const KernelsOfPanel& kernels, int16_t* numbers, float* scales) {
  const int64_t w = cpu::kernels().vector_width, pairs = first_layer_pairs(g);
  for (int64_t i = 0; i < kernels.stored; ++i) {
    const int64_t channel = kernels.first + i;
    int16_t* to = numbers + (channel / w * pairs * w + channel % w) * 2;
    const bool there = i < kernels.used;
    std::vector<double> all(static_cast<size_t>(2 * pairs));
    if (there) all = transformed_kernels(g, kernels.weight + i * kernels.strides.out, kernels.strides);
    const double scale = scale_of(g, all);
    scales[channel] = static_cast<float>(scale);
    for (int64_t k = 0; k < pairs; ++k)
      for (int64_t half = 0; half < 2; ++half)
        to[k * 2 * w + half] =
            std::isnan(scale) ? int16_t{0} : static_cast<int16_t>(std::lrint(all[2 * k + half] / scale));
  }
}

}  // namespace cnnfast::cpu
