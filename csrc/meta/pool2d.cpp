// Shapes and strides of the pooling operators, without data.
#include "ops/pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

constexpr int64_t kNoDilation[2] = {1, 1};

at::Tensor pooled(const std::vector<c10::SymInt>& sizes, const at::Tensor& input) {
  return at::empty_symint(sizes, input.options(),
                          sizes.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

at::Tensor max_pool2d_meta(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return pooled(check_pool2d("max_pool2d", input, {kernel_size, stride, padding, dilation, ceil_mode}),
                input);
}

at::Tensor avg_pool2d_meta(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                           at::IntArrayRef padding, bool ceil_mode, bool, std::optional<int64_t>) {
  return pooled(check_pool2d("avg_pool2d", input, {kernel_size, stride, padding, kNoDilation, ceil_mode}),
                input);
}

at::Tensor max_pool2d_backward_meta(const at::Tensor&, const at::Tensor& input, at::IntArrayRef,
                                    at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, bool) {
  return at::empty_symint(input.sym_sizes(), input.options(), input.suggest_memory_format());
}

at::Tensor avg_pool2d_backward_meta(const at::Tensor&, const at::Tensor& input, at::IntArrayRef,
                                    at::IntArrayRef, at::IntArrayRef, bool, bool, std::optional<int64_t>) {
  return at::empty_symint(input.sym_sizes(), input.options(), input.suggest_memory_format());
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_meta));
  m.impl("max_pool2d_backward", TORCH_FN(max_pool2d_backward_meta));
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_meta));
  m.impl("avg_pool2d_backward", TORCH_FN(avg_pool2d_backward_meta));
}

}  // namespace cnnfast
