// The gradient of a convolution's weight in float32.
#pragma once
#include "cpu/conv_geometry.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Small groups of channels are left to ATen.
bool serves_weight_gradient(const at::Tensor& weight, int64_t groups);

// `input` may be bfloat16: it is widened on its way into memory with its border. The result has the weight's
// strides.
at::Tensor weight_gradient(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                           const Conv2dParams& params);

// The algorithm for one group of a convolution.
ConvAlgorithm gradient_algorithm(const ConvGeometry& geometry);
// Tiles worked on at once by a thread that has so many of the input's channels.
int64_t gradient_strip_tiles(const ConvGeometry& geometry, int64_t in_channels);

}  // namespace cnnfast::cpu
