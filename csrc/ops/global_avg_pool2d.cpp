#include "ops/global_avg_pool2d.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {

std::vector<c10::SymInt> check_global_avg_pool2d(const at::Tensor& input) {
  constexpr const char* op = "global_avg_pool2d";
  check_rank(op, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", op,
              ": input must be of a floating-point type, not ", input.scalar_type());
  TORCH_CHECK(input.sym_size(1) > 0, "cnnfast::", op, ": input ", input.sym_sizes(), " must have channels");
  TORCH_CHECK(input.sym_size(2) > 0 && input.sym_size(3) > 0, "cnnfast::", op, ": input ", input.sym_sizes(),
              " must not have an empty height or width");
  return {input.sym_size(0), input.sym_size(1), 1, 1};
}

at::Tensor global_avg_pool2d_composite(const at::Tensor& input) {
  check_global_avg_pool2d(input);
  return own_channels_last(at::mean(input, at::IntArrayRef({2, 3}), /*keepdim=*/true));
}

namespace {

at::Tensor global_avg_pool2d_backward(const at::Tensor& grad_output, const at::Tensor& input) {
  check_global_avg_pool2d(input);
  const at::Tensor share = grad_output / static_cast<double>(input.size(2) * input.size(3));
  return at::empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast).copy_(share);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("global_avg_pool2d", TORCH_FN(global_avg_pool2d_composite));
  m.impl("global_avg_pool2d_backward", TORCH_FN(global_avg_pool2d_backward));
}

}  // namespace cnnfast
