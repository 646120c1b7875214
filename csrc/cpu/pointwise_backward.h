// Gradients of a 1x1 convolution in one pass over memory: while a strip of pixels is in cache, its gradient
// before the activation is made, and gives the sums of the bias, the input's gradient and the weight's.
#pragma once
#include <optional>
#include <vector>

#include "cpu/tensor_view.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {

struct PointwiseGradients {
  at::Tensor input, weight;  // undefined where not wanted
  std::vector<double> bias;
};

// act(conv(input, weight) + bias) with its output and the output's gradient, all float32 by is_plain_float.
// Nothing where geometry or sizes (never the number of threads) are better served one gradient at a time.
std::optional<PointwiseGradients> pointwise_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                     const at::Tensor& weight, const at::Tensor& output,
                                                     const Conv2dParams& params, Activation activation,
                                                     WantedConvGradients wanted);

}  // namespace cnnfast::cpu
