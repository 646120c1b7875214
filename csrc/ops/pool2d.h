// max_pool2d and avg_pool2d, with torch.nn.functional's rules.
#pragma once
#include "ops/common.h"

namespace cnnfast {

struct Pool2dParams {
  at::IntArrayRef kernel_size, stride, padding, dilation;
  bool ceil_mode;
  // An empty stride means the kernel size.
  at::IntArrayRef steps() const { return stride.empty() ? kernel_size : stride; }
};

// Output sizes; `input` may be C x H x W too.
std::vector<c10::SymInt> check_pool2d(const char* op, const at::Tensor& input, const Pool2dParams& params);
// The same for images of which the sizes alone are known, as inside a block.
std::vector<c10::SymInt> pool2d_output_sizes(const char* op, c10::SymIntArrayRef input,
                                             const Pool2dParams& params);
// Positions of the window along one side; ceil_mode adds one that starts inside the image or its left
// padding.
c10::SymInt pool_output_size(const c10::SymInt& size, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation, bool ceil_mode);

at::Tensor max_pool2d_composite(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
at::Tensor max_pool2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode);
at::Tensor avg_pool2d_composite(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                std::optional<int64_t> divisor_override);
at::Tensor avg_pool2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                         std::optional<int64_t> divisor_override);

}  // namespace cnnfast
