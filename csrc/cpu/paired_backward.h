// Gradients of a convolution on bfloat16 tensors, a few images at a time: while they are in cache, the
// gradient before the activation is made, and gives the sums of the bias and the gradients of input and
// weight.
#pragma once
#include <optional>
#include <vector>

#include "cpu/image.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {

struct PairedGradients {
  at::Tensor input, weight;  // undefined where not wanted
  std::vector<double> bias;
};

// act(conv(input, weight) + bias) with its output and the output's gradient, where multiplies_pairs; images
// are bfloat16. Nothing where
// pairs do not serve, or where sizes (never the number of threads) are better served one gradient at a time:
// few images, or large weights.
std::optional<PairedGradients> paired_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& weight, const at::Tensor& output,
                                               const Conv2dParams& params, Activation activation,
                                               WantedConvGradients wanted);

}  // namespace cnnfast::cpu
