// Output pixels in one row of memory, in an order in which every tap of a kernel is a fixed distance away:
// rows and images follow one another at a pitch that leaves room for what taps read beyond an end. Where
// those are zeros, the zeros in front of the next row or image serve.
//
// A stride cuts the input into phases, images of every second (third, ...) row and column.
#pragma once
#include <algorithm>

#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

// Along rows or columns.
struct FlatAxis {
  FlatAxis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding)
      : in(in), out(out), stride(stride), dilation(dilation), padding(padding) {
    const int64_t farthest = shift(kernel - 1), zeros_in_front = padding / stride;
    const int64_t filled = (in + padding + stride - 1) / stride;
    pitch = std::min(out + farthest, std::max({out, filled, out + farthest - zeros_in_front}));
  }
  int64_t phase(int64_t tap) const { return tap * dilation % stride; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  // Of the input, where position `at` of a phase lies; -1: in the padding.
  int64_t source(int64_t at, int64_t phase) const {
    const int64_t i = at * stride + phase - padding;
    return i < in ? std::max<int64_t>(i, -1) : -1;
  }

  int64_t in, out, stride, dilation, padding, pitch;
};

}  // namespace cnnfast::cpu
