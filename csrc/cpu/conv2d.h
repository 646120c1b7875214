// The float32 convolution on tensors, for operators that contain one.
#pragma once
#include <functional>

#include "cpu/conv_geometry.h"
#include "cpu/tensor_view.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Of a convolution of images and weight of these sizes, directly.
ConvGeometry conv_geometry(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                           at::IntArrayRef output_sizes, Activation activation = {});

// Brings the input into memory with its border, as with_border does: where a prologue is applied on the way.
using BringIn = std::function<View(const at::Tensor&, Border, at::Tensor& storage)>;

// Arguments must have passed check_conv2d, which gave `sizes`; bfloat16 ones are widened some images at a
// time. `type`: the output's, float32 or bfloat16.
at::Tensor conv2d_in(at::ScalarType type, const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes,
                     const BringIn& bring_in = with_border);
// The same into a tensor of the output's sizes whose channels are adjacent: a slice of a concatenation, too.
void conv2d_into(const Conv2dArgs& args, const at::Tensor& output, const BringIn& bring_in = with_border);

}  // namespace cnnfast::cpu
