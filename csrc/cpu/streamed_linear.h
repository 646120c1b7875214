// Linear layers of a few rows and many weights, as training has them, where weights change at every step:
// read as they lie, without a copy for the kernels, and their gradients in memory that is kept from step to
// step.
#pragma once
#include <ATen/core/Tensor.h>

namespace cnnfast::cpu {

// Fewer weights stay in cache.
constexpr int64_t kManyWeights = 1 << 18;

// The gradients of layers of fewer weights and some hundred rows come from the same kernels.
constexpr int64_t kSomeRows = 1024;

// Whether that pays for rows x in by out x in, both float32, and whether kept memory does for the gradients,
// of any number of rows. Depends on sizes and strides alone.
bool streams_linear(const at::Tensor& rows, const at::Tensor& weight);
bool keeps_linear_gradients(const at::Tensor& rows, const at::Tensor& weight);
bool multiplies_near_weights(const at::Tensor& rows, const at::Tensor& weight);

// rows @ weight.T; `rows`: rows x in, contiguous.
at::Tensor streamed_linear(const at::Tensor& rows, const at::Tensor& weight);

// From the output's gradient, rows x out.
at::Tensor streamed_linear_input_grad(const at::Tensor& grad, const at::Tensor& weight);
at::Tensor streamed_linear_weight_grad(const at::Tensor& grad, const at::Tensor& rows);

}  // namespace cnnfast::cpu
