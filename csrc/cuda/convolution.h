// Convolutions inside the operators on CUDA tensors. cuDNN's own results are tensors of their own: ATen's
// plan cache for convolutions does not know an output's strides, so that a slice of a concatenation must not
// be given to it as `out`. What writes the slice is the pass that adds bias, residual and activation, which
// eager PyTorch has as well: nothing is concatenated, and no pass is there for the slice alone.
#pragma once
#include "ops/bn_act_conv2d.h"

namespace cnnfast::cuda {

// Batch norm by given statistics, activation and convolution in one, into a slice of channels, by another
// backend (Triton's, say).
// False where there is none that serves the call; nothing is done then.
bool bn_act_conv2d_into(const BnActConv2dArgs& args, double eps, const at::Tensor& output);

// Into a slice of channels, by another backend where one serves the call. Arguments must have passed
// check_conv2d, and input and output must be served.
void conv2d_into(const Conv2dArgs& args, const at::Tensor& output);
// In a tensor of its own: the operator itself, so that its choice of a backend holds here too.
at::Tensor conv2d_images(const Conv2dArgs& args);

// cuDNN's convolution with bias, residual and ReLU in one kernel, through ATen. cuDNN's ReLU turns NaN into
// 0, so that it runs where the environment asks for it alone: CNNFAST_CUDNN_FUSED=1.
bool fits_cudnn_fused(const Conv2dArgs& args);
at::Tensor conv2d_cudnn_fused(const Conv2dArgs& args);

}  // namespace cnnfast::cuda
