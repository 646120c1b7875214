#include "ops/pool2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {

c10::SymInt pool_output_size(const c10::SymInt& size, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation, bool ceil_mode) {
  const c10::SymInt span = size + 2 * padding - dilation * (kernel - 1) - 1;
  const c10::SymInt count = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (count - 1) * stride >= size + padding) return count - 1;
  return count;
}

std::vector<c10::SymInt> check_pool2d(const char* op, const at::Tensor& input, const Pool2dParams& params) {
  TORCH_CHECK(input.dim() == 4 || input.dim() == 3, "cnnfast::", op,
              ": input must have 3 or 4 dimensions, not shape ", input.sym_sizes());
  return pool2d_output_sizes(op, input.sym_sizes(), params);
}

std::vector<c10::SymInt> pool2d_output_sizes(const char* op, c10::SymIntArrayRef input,
                                             const Pool2dParams& p) {
  check_pair(op, "kernel_size", p.kernel_size, 1);
  check_pair(op, "stride", p.steps(), 1);
  check_pair(op, "padding", p.padding, 0);
  check_pair(op, "dilation", p.dilation, 1);
  auto sizes = input.vec();
  const size_t first = sizes.size() - 2;
  TORCH_CHECK(sizes[first - 1] > 0, "cnnfast::", op, ": input ", input, " must have channels");
  for (int i = 0; i < 2; ++i) {
    const auto size = sizes[first + i];
    const int64_t kernel = p.kernel_size[i];
    TORCH_CHECK(size > 0, "cnnfast::", op, ": input ", input, " must not have an empty height or width");
    TORCH_CHECK(p.padding[i] <= kernel / 2, "cnnfast::", op, ": padding ", p.padding,
                " must be at most half of kernel_size ", p.kernel_size);
    TORCH_CHECK(size + 2 * p.padding[i] >= p.dilation[i] * (kernel - 1) + 1 || p.ceil_mode, "cnnfast::", op,
                ": kernel_size ", p.kernel_size, " with dilation ", p.dilation, " is larger than input ",
                input, " with padding ", p.padding);
    sizes[first + i] = pool_output_size(size, kernel, p.steps()[i], p.padding[i], p.dilation[i], p.ceil_mode);
    TORCH_CHECK(sizes[first + i] > 0, "cnnfast::", op, ": kernel_size ", p.kernel_size,
                " leaves no output of input ", input);
  }
  return sizes;
}

namespace {

at::Tensor pooled(const at::Tensor& y) { return y.dim() == 4 ? own_channels_last(y) : y.contiguous(); }

constexpr int64_t kNoDilation[2] = {1, 1};

}  // namespace

at::Tensor max_pool2d_composite(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  check_pool2d("max_pool2d", input, {kernel_size, stride, padding, dilation, ceil_mode});
  return pooled(
      std::get<0>(at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode)));
}

at::Tensor avg_pool2d_composite(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                std::optional<int64_t> divisor_override) {
  check_pool2d("avg_pool2d", input, {kernel_size, stride, padding, kNoDilation, ceil_mode});
  TORCH_CHECK(!divisor_override || *divisor_override != 0,
              "cnnfast::avg_pool2d: divisor_override must not be 0");
  return pooled(
      at::avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override));
}

// The window's winner is looked for again: cheaper to keep than indices of eight bytes per output.
at::Tensor max_pool2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  const auto indices =
      std::get<1>(at::max_pool2d_with_indices(input, kernel_size, stride, padding, dilation, ceil_mode));
  return at::max_pool2d_with_indices_backward(grad_output, input, kernel_size, stride, padding, dilation,
                                              ceil_mode, indices);
}

at::Tensor avg_pool2d_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                         at::IntArrayRef kernel_size, at::IntArrayRef stride,
                                         at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                                         std::optional<int64_t> divisor_override) {
  const auto format = input.suggest_memory_format();
  const bool padded = padding[0] > 0 || padding[1] > 0;
  if (!input.is_cuda() || !padded || format == at::MemoryFormat::Contiguous)
    return at::avg_pool2d_backward(grad_output, input, kernel_size, stride, padding, ceil_mode,
                                   count_include_pad, divisor_override);
  // Wrong on GPUs in channels_last memory with padding: github.com/pytorch/pytorch/issues/188344.
  return at::avg_pool2d_backward(grad_output.contiguous(), input.contiguous(), kernel_size, stride, padding,
                                 ceil_mode, count_include_pad, divisor_override)
      .contiguous(format);
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_composite));
  m.impl("max_pool2d_backward", TORCH_FN(max_pool2d_backward_composite));
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_composite));
  m.impl("avg_pool2d_backward", TORCH_FN(avg_pool2d_backward_composite));
}

}  // namespace cnnfast
