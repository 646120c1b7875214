// The gradient of a convolution's input in float32.
#pragma once
#include <vector>

#include "cpu/conv_job.h"
#include "cpu/input_grad_parts.h"

namespace cnnfast::cpu {

// The weight of a part, as a stride-1 convolution from outputs to inputs reads it.
struct TurnedWeight {
  // swapped: input and output channels in each other's place.
  TurnedWeight(const at::Tensor& weight, const InputGradientPart& part, at::IntArrayRef stride,
               bool swapped = true);
  const float* first;
  WeightStrides strides;
};

class InputGradient {
 public:
  // `output_sizes`: of the convolution's output. The input's values are not read; it may be bfloat16.
  InputGradient(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                at::IntArrayRef output_sizes);

  // Strides and dilations above 1 on the same side, and small groups, are left to ATen.
  static bool serves(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params);

  // Zeros that must lie around the output's gradient.
  const Border& border() const { return parts_.border; }

  // `grad`: first pixel inside the border. The result has the input's strides.
  at::Tensor run(const View& grad) const;
  // The same into float32 images whose channels are adjacent.
  void run_into(const View& grad, const at::Tensor& result) const;

 private:
  struct Packing {
    int64_t at;  // floats in front of the part's packed weights
    bool raw;    // they are read as they lie
  };
  std::vector<PackedConv> weights(float* to, at::Tensor& held) const;

  const at::Tensor& input_;
  const at::Tensor& weight_;
  Conv2dParams params_;
  InputGradientParts parts_;
  std::vector<Packing> packing_;
  int64_t packed_floats_ = 0;
};

}  // namespace cnnfast::cpu
