// Gradients of one convolution inside a larger operator: the one place that the blocks go through.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast {

struct ConvGradients {
  at::Tensor input, weight, bias;  // undefined where not wanted
};

struct WantedConvGradients {
  bool input, weight, bias;
  bool any() const { return input || weight || bias; }
};

// Gradients of conv(input, weight) + bias. grad_output and input may be slices of any strides; the weight's
// gradient has the weight's strides.
ConvGradients conv_gradients(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                             const Conv2dParams& params, WantedConvGradients wanted);

}  // namespace cnnfast
