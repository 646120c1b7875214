// Convolutions inside the operators on CUDA tensors. cuDNN's own results are tensors of their own: ATen's
// plan cache for convolutions does not know an output's strides, so that a slice of a concatenation must not
// be given to it as `out`. What writes the slice is the pass that adds bias, residual and activation, which
// eager PyTorch has as well: nothing is concatenated, and no pass is there for the slice alone.
#pragma once
#include "ops/conv2d.h"

namespace cnnfast::cuda {

// A convolution of another origin (Triton's, say): writes act(conv * scale + bias + residual) into `output`,
// a slice of channels, and returns true; or does nothing and returns false.
using SliceConv2d = bool (*)(const Conv2dArgs& args, const at::Tensor& output);
// Asked first from then on; nullptr, the default: none.
void set_slice_conv2d(SliceConv2d conv2d);

// Into a slice of channels. Arguments must have passed check_conv2d, and input and output must be served.
void conv2d_into(const Conv2dArgs& args, const at::Tensor& output);
// In a tensor of its own: the operator itself, so that its choice of a backend holds here too.
at::Tensor conv2d_images(const Conv2dArgs& args);

// cuDNN's convolution with bias, residual and ReLU in one kernel, through ATen. cuDNN's ReLU turns NaN into
// 0, so that it runs where the environment asks for it alone: CNNFAST_CUDNN_FUSED=1.
bool fits_cudnn_fused(const Conv2dArgs& args);
at::Tensor conv2d_cudnn_fused(const Conv2dArgs& args);

}  // namespace cnnfast::cuda
