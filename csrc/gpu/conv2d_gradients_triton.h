// Gradients of a convolution by Triton kernels that were compiled ahead of time.
#pragma once
#include <string>
#include <vector>

#include "gpu/triton/kernels.h"
#include "ops/conv2d.h"

namespace cnnfast::gpu {

struct ConvGradientCall {
  const at::Tensor& grad_output;
  const at::Tensor& input;
  const at::Tensor& weight;
  Conv2dParams params;
};

// Best first by a model of clocks, or none and the reason.
std::vector<Kernel> find_triton_input_grad(const ConvGradientCall& call, std::string* reason);
// In channels_last memory.
at::Tensor run_triton_input_grad(const Kernel& kernel, const ConvGradientCall& call);

// The pixels are cut into parts whose sums run side by side; a second kernel adds them, in order.
struct WeightGradKernels {
  Kernel product, sum;
};
std::vector<WeightGradKernels> find_triton_weight_grad(const ConvGradientCall& call, std::string* reason);
at::Tensor run_triton_weight_grad(const WeightGradKernels& kernels, const ConvGradientCall& call);

}  // namespace cnnfast::gpu
