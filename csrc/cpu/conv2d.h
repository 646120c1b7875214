// The float32 convolution on tensors, for operators that contain one.
#pragma once
#include "cpu/conv_geometry.h"
#include "cpu/tensor_view.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Of a convolution of images and weight of these sizes, directly.
ConvGeometry conv_geometry(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                           at::IntArrayRef output_sizes, Activation activation = {});

// act(input * scale + shift) while a convolution brings its input into memory.
struct InputPrologue {
  const float *scale, *shift;
  Activation activation;

  // `count` pixels, `step` values apart, to pixels side by side; float32 ones may be written over.
  void apply(const float* from, int64_t step, float* to, int64_t count, int64_t channels) const;
  void apply(const uint16_t* from, int64_t step, float* to, int64_t count, int64_t channels) const;
};

// Arguments must have passed check_conv2d, which gave `sizes`; bfloat16 ones are widened some images at a
// time. `type`: the output's, float32 or bfloat16. `prologue`: may be null.
at::Tensor conv2d_in(at::ScalarType type, const Conv2dArgs& args, const std::vector<c10::SymInt>& sizes,
                     const InputPrologue* prologue = nullptr);
// The same into a tensor of the output's sizes whose channels are adjacent: a slice of a concatenation, too.
void conv2d_into(const Conv2dArgs& args, const at::Tensor& output, const InputPrologue* prologue = nullptr);

}  // namespace cnnfast::cpu
