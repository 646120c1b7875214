// How a convolution is computed: directly, or by Winograd's algorithm with one of several tile sizes.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace cnnfast::cpu {

struct ConvGeometry;

// tile 0: direct. Else tile x tile output pixels from points x points input pixels; for kernels of one row or
// column (ConvGeometry::line) `tile` of them side by side from `points`. fixed: by products of
// whole numbers (cpu/fixed_winograd.h), from bfloat16 values. stride 2, of 3x3 kernels: outer taps meet
// pixels at even places alone and middle taps those at odd ones, so that an even half is a convolution of
// stride 1 with two taps, by Winograd's algorithm with tile + 1 points, and an odd half has one tap, the same
// for `tile` points. Of 7x7 kernels first layers alone, see first_layer().
struct ConvAlgorithm {
  int64_t points = 0, tile = 0;
  bool fixed = false;
  int64_t stride = 1;
  bool direct() const { return tile == 0; }
  bool first_layer() const { return fixed && stride == 2 && points == 7; }  // cpu/first_winograd.h
  // Points with kernels of their own, from one side.
  int64_t kernel_points() const { return stride == 1 || first_layer() ? points : tile + 2; }
  bool operator==(const ConvAlgorithm&) const = default;
};

// Largest tile where values are floats, and where they are rounded to bfloat16: tiles of 7x7 pixels under 3x3
// kernels, and of 6x6 under 5x5 ones, err by 5e-5 of the largest value, a hundredth of that rounding; those
// of 7x7 divide images of 224 pixels' halves evenly.
constexpr int64_t kLargestTile = 6, kLargestTile16 = 8;
// A bound on tiles that was said for floats, for such values in frozen networks. Where the CPU has products
// of whole numbers, floats from ten points are no faster than these.
int64_t largest_tile16(int64_t largest_tile);

// What can compute this, direct convolution first; `largest_tile` as below. Frozen networks alone have
// Winograd's algorithm for dilated kernels.
std::vector<ConvAlgorithm> possible_algorithms(const ConvGeometry& geometry, int64_t largest_tile);

// The cheapest for these sizes by a model of arithmetic and of bytes moved. `largest_tile` bounds the tile of
// a 3x3 convolution, and for larger kernels the number of points that goes with it, on which errors depend
// (kernels of one row or column have two more for the same errors); 0: direct. Does not depend on the number
// of threads, so that results don't either.
ConvAlgorithm choose_algorithm(const ConvGeometry& geometry, int64_t largest_tile);

// The cheapest where weights change at every step. Floats take tiles of at most 4x4 pixels for 3x3 and 5x5
// kernels, since 6x6 pixels for 3x3 have ten times the errors (docs/performance.md), and all points for
// kernels of one row or column, with errors of some 2e-6; bfloat16 takes all tiles. Small convolutions are
// direct.
ConvAlgorithm trained_algorithm(const ConvGeometry& geometry);

// The cheapest with products of whole numbers, where the CPU has them and there is one for these sizes.
std::optional<ConvAlgorithm> choose_fixed(const ConvGeometry& geometry);

// Cycles of one core by that model.
double conv_cycles(const ConvGeometry& geometry, const ConvAlgorithm& algorithm);
// Of bfloat16 values that are widened to float32, by `geometry.algorithm`, and of the result's rounding.
double widened_cycles(const ConvGeometry& geometry);
// Of bfloat16 values, where a vector instruction adds products of pairs (no tiles).
double pair_cycles(const ConvGeometry& geometry);

// Rows below and columns to the right that are read beyond those of a direct convolution: tiles that reach
// over the output's end. Finite values must be there; they do not enter the result.
struct Overreach {
  int64_t bottom = 0, right = 0;
};
Overreach overreach(const ConvGeometry& geometry);

// The matrix, kernel points x kernel size, that takes a kernel to its transform from both sides.
const double* kernel_transform(const ConvAlgorithm& algorithm);

}  // namespace cnnfast::cpu
