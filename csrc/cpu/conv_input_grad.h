// The gradient of a convolution's input: for every phase of the strides a stride-1 convolution of the
// output's gradient with a turned part of the weight.
#pragma once
#include <array>
#include <vector>

#include "cpu/conv_job.h"
#include "cpu/image.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

class InputGradient {
 public:
  // `output_sizes`: of the convolution's output.
  InputGradient(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                at::IntArrayRef output_sizes);

  // Strides and dilations above 1 on the same side, and small groups, are left to ATen.
  static bool serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params);

  // Zeros that must lie around the output's gradient.
  const Border& border() const { return border_; }

  // `grad`: first pixel inside the border. The result has the input's strides.
  at::Tensor run(const View& grad) const;

 private:
  // Along one side: input places first, first + step, ... read `count` output places each, the first of them
  // from `lowest` on; kernel places last, last - stride, ... belong to them.
  struct Phase {
    int64_t first, places, lowest, count, last;
  };
  static std::vector<Phase> phases(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                   int64_t dilation);
  // One pair of phases, rows and columns.
  struct Part {
    Phase rows, columns;
    ConvGeometry geometry;
    int64_t packed_at;  // floats in front of its packed weights
    bool raw;           // weights are read as they lie
  };
  void add_part(const Phase& rows, const Phase& columns);
  std::vector<PackedConv> weights(float* to, at::Tensor& held) const;

  const at::Tensor& input_;
  const at::Tensor& weight_;
  Conv2dParams params_;
  at::IntArrayRef output_sizes_;
  std::vector<Part> parts_;
  bool covers_all_ = true;  // every place of the input belongs to a part
  int64_t packed_floats_ = 0;
  Border border_;
};

}  // namespace cnnfast::cpu
