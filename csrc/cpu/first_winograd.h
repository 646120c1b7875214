// First layers by Winograd's algorithm (kernels/winograd_first.inl): 7x7 kernels of stride 2 over images of a
// few channels. Pixels at even and at odd rows and columns are channels of their own, four times as many; of
// a kernel's side four taps meet even pixels and three the odd ones. So tiles of 4x4 pixels take 7x7 points
// of all of them, where the last point from a side has no odd pixels.
#pragma once
#include <stdint.h>

namespace cnnfast::cpu {

struct FirstWinograd {
  static constexpr int kMostChannels = 4, kKernel = 7, kTaps = 4;
  static constexpr int kPoints = 7, kTile = 4;
  static constexpr int kPixels = 13;  // from one side of a tile
  // Pairs of channels at each point of a column of points; channels of odd rows come after the others, and
  // among those of a row the ones of odd columns.
  static constexpr int pairs(int channels, int column) {
    return column + 1 < kPoints ? 2 * channels : channels;
  }
  static constexpr int pairs_before(int channels, int column) { return 2 * channels * column; }
  static constexpr int all_pairs(int channels) { return (2 * kPoints - 1) * channels; }
  // What transformed pixels are multiplied by from each side, and transformed kernels divided by: points of
  // one scale are then of about the same size. The root of a row of the kernels' matrix over one of the
  // pixels', by their norms.
  static constexpr float balance(int point) {
    return point < 2 ? 0.3691f : point < 4 ? 0.3482f : point < 6 ? 0.3012f : 0.4338f;
  }
};

}  // namespace cnnfast::cpu
