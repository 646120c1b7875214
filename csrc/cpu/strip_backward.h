// Gradients of a convolution in one pass over memory: while a strip of pixels is in cache, its gradient
// before the activation is made, and gives the sums of the bias, the weight's gradient and, of a 1x1
// convolution, the input's.
#pragma once
#include <optional>
#include <vector>

#include "cpu/pooled_rows.h"
#include "cpu/tensor_view.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {

struct StripGradients {
  at::Tensor input, weight;  // undefined where not wanted
  std::vector<double> bias;
};

// act(conv(input, weight) + bias) with its output and the output's gradient. The weight is float32 by
// is_plain_float; images may be bfloat16, and are widened, and the input's gradient rounded, strip by strip.
// For 1x1 kernels, and for first layers: few channels, of which no gradient is wanted. Nothing where geometry
// or sizes (never the number of threads) are better served one gradient at a time.
std::optional<StripGradients> strip_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                             const at::Tensor& weight, const at::Tensor& output,
                                             const Conv2dParams& params, Activation activation,
                                             WantedConvGradients wanted);
// The same with a pooling behind the activation, from the pooling's gradient.
std::optional<StripGradients> strip_backward(const PooledRows& rows, const at::Tensor& output,
                                             const at::Tensor& input, const at::Tensor& weight,
                                             const Conv2dParams& params, WantedConvGradients wanted);

}  // namespace cnnfast::cpu
