// The gradient of a weight in float32 from some rows of images after the other, by one thread: sums stay in
// its second-level cache.
#pragma once
#include <vector>

#include "cpu/conv_geometry.h"

namespace cnnfast::cpu {

class ChunkedWeightGradient {
 public:
  // Of convolutions of one group. `geometry` has the images and the height of a chunk; `images` of
  // such chunks there are in all.
  ChunkedWeightGradient(const ConvGeometry& geometry, int64_t images);

  // Sums of this size pay for being read and written once a chunk.
  bool serves() const;
  // Pixels that must lie below and beside what the kernel's taps read.
  Overreach beyond() const { return overreach(geometry_); }
  // Of one image.
  int64_t tiles() const;

  // Adds the products of so many images and rows to the calling thread's sums, the first of which begins at
  // zero; the last writes them to `to`. `input` holds the first tap of the first pixel.
  struct Step {
    int64_t images, height;
    bool first, last;
  };
  void add(const View& input, const View& grad, const Step& step, float* to, WeightStrides strides) const;

 private:
  void add_winograd(const View& input, const View& grad, const Step& step, float* to,
                    WeightStrides strides) const;
  void add_direct(const View& input, const View& grad, const Step& step, float* to,
                  WeightStrides strides) const;

  ConvGeometry geometry_;
  Panels panels_;
};

}  // namespace cnnfast::cpu
