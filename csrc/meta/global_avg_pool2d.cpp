// Shapes and strides of global_avg_pool2d, without data.
#include "ops/global_avg_pool2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

at::Tensor global_avg_pool2d_meta(const at::Tensor& input) {
  return at::empty_symint(check_global_avg_pool2d(input), input.options(), at::MemoryFormat::ChannelsLast);
}

at::Tensor global_avg_pool2d_backward_meta(const at::Tensor&, const at::Tensor& input) {
  check_global_avg_pool2d(input);
  return at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("global_avg_pool2d", TORCH_FN(global_avg_pool2d_meta));
  m.impl("global_avg_pool2d_backward", TORCH_FN(global_avg_pool2d_backward_meta));
}

}  // namespace cnnfast
