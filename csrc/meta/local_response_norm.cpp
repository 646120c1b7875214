// Shapes and strides of local_response_norm, without data.
#include "ops/local_response_norm.h"

#include <ATen/Functions.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

at::Tensor like_images(const at::Tensor& input) {
  return at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast);
}

at::Tensor local_response_norm_meta(const at::Tensor& input, int64_t size, double, double, double) {
  check_local_response_norm(input, size);
  return like_images(input);
}

at::Tensor local_response_norm_backward_meta(const at::Tensor&, const at::Tensor& input, int64_t size, double,
                                             double, double) {
  check_local_response_norm(input, size);
  return like_images(input);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Meta, m) {
  m.impl("local_response_norm", TORCH_FN(local_response_norm_meta));
  m.impl("local_response_norm_backward", TORCH_FN(local_response_norm_backward_meta));
}

}  // namespace cnnfast
