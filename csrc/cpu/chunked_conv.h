// A convolution by the float32 kernels on some rows of images after the other: a thread brings in what it
// reads, computes and rounds with all of that in its second-level cache (cpu/image_chunks.h).
#pragma once
#include <optional>

#include "cpu/conv2d.h"
#include "cpu/conv_pack.h"
#include "cpu/image_chunks.h"

namespace cnnfast::cpu {

class ChunkedConv {
 public:
  // The output's channels are adjacent. `prologue` may be null.
  ChunkedConv(const Conv2dArgs& args, const at::Tensor& output, const InputPrologue* prologue);

  // Whether there are chunks enough for several threads; by sizes alone.
  static bool serves(const Conv2dArgs& args, const at::Tensor& output);

  // Of the convolution as the weights are packed for it.
  const ConvGeometry& geometry() const { return geometry_; }
  void run(const PackedConv& weights) const;

 private:
  void run_chunk(int64_t index, const PackedConv& weights, float* memory) const;

  const Conv2dArgs& args_;
  const InputPrologue* prologue_;
  ImageChunks chunks_, in_chunks_;
  ImageRows input_, output_;
  std::optional<ImageRows> residual_;
  ConvGeometry geometry_;
  Border border_;
  View in_memory_, out_memory_;
};

}  // namespace cnnfast::cpu
