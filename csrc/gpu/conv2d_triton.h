// The convolution by a Triton kernel that was compiled ahead of time.
#pragma once
#include <string>
#include <vector>

#include "gpu/triton/table.h"
#include "ops/conv2d.h"

namespace cnnfast::gpu {

struct TritonConv2d {
  const Variant* variant;
  const Image* image;
  bool filled;  // absent bias is passed as zeros, absent scale as ones: the kernel has no version without
};

// The kernels that serve these arguments, best first by a model of clocks, or none and the reason in words.
std::vector<TritonConv2d> triton_conv2d_choices(const Conv2dArgs& args, at::IntArrayRef output_sizes,
                                                std::string* reason);

// Into channels_last memory or a slice of its channels. DriverError where the code does not load or the
// launch fails.
void run_triton_conv2d(const TritonConv2d& choice, const Conv2dArgs& args, const at::Tensor& output);
// Whether the kernel can write there.
bool fits_output(const TritonConv2d& choice, const Conv2dArgs& args, const at::Tensor& output);

}  // namespace cnnfast::gpu
