// Gradients of inputs on bfloat16 tensors where instructions multiply pairs of bfloat16 values.
#pragma once
#include "cpu/aligned_floats.h"
#include "cpu/images16.h"
#include "cpu/input_grad_parts.h"

namespace cnnfast::cpu {

class PairedInputGradient {
 public:
  PairedInputGradient(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                      at::IntArrayRef output_sizes);

  // Where pairs pay (cpu/paired_conv.h): groups of few channels, and strides with dilations, are left to
  // others.
  static bool serves(const at::Tensor& weight, const Conv2dParams& params);
  // Whether pixels of an input of so many columns are joined: several fill a vector.
  static bool joins(const at::Tensor& weight, const Conv2dParams& params, int64_t columns);

  // Zeros that must lie around the output's gradient.
  const Border& border() const { return parts_.border; }

  // `grad`: its view is that of the first pixel of the border. The result has the input's strides.
  at::Tensor run(const Images16& grad);

  // The same in parts: pack the weights, then `images` images into `to`, share `thread` of `team`; every
  // place of the input belongs to a phase.
  bool covers_all() const { return parts_.covers_all; }
  void pack();
  void run_images(const Images16& grad, int64_t images, const View16& to, int thread, int team) const;
  // In the layout of the input, as eager PyTorch gives it and compiled graphs expect.
  at::Tensor in_layout(const at::Tensor& result) const;

 private:
  void join_pixels();
  at::Tensor joined_weight() const;

  const at::Tensor& input_;
  at::Tensor weight_;  // in float32
  Conv2dParams params_;
  InputGradientParts parts_;
  // Pixels side by side whose channels fill a vector together, as one of more channels under a wider kernel.
  int64_t joined_ = 1;
  std::vector<AlignedFloats> packed_;
};

}  // namespace cnnfast::cpu
