// Convolutions of few images whose kernel covers all of them, so that one pixel results: linear layers of
// many weights, read as they lie while they are trained (cpu/streamed_linear).
#pragma once
#include <array>
#include <optional>

#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Undefined where they do not serve: neither scale nor residual, one group, a float32 weight of which a
// gradient is recorded, dense in either layout. Images float32 or bfloat16.
at::Tensor one_pixel_conv(const Conv2dArgs& args, at::IntArrayRef output_sizes);

struct OnePixelGradients {
  at::Tensor input, weight, bias;  // undefined where not wanted
};

// The same of the gradients; `output_mask`: of input, weight and bias.
std::optional<OnePixelGradients> one_pixel_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                    const at::Tensor& weight, const at::Tensor& output,
                                                    const Conv2dParams& params, const Activation& activation,
                                                    std::array<bool, 3> output_mask);

}  // namespace cnnfast::cpu
