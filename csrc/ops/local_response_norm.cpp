#include "ops/local_response_norm.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

// For each channel the mean of x over `size` channels, of which `before` lie in front of it; channels beyond
// the ends count as zeros.
at::Tensor window_mean(const at::Tensor& x, int64_t size, int64_t before) {
  const auto padded = at::constant_pad_nd(x.contiguous(), {0, 0, 0, 0, before, size - 1 - before});
  return at::avg_pool3d(padded.unsqueeze(1), {size, 1, 1}, {1, 1, 1}).squeeze(1);
}

// Narrow types are computed in float32.
at::ScalarType working_type(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

at::Tensor base_of(const at::Tensor& x, int64_t size, double alpha, double k) {
  return window_mean(x * x, size, size / 2) * alpha + k;
}

at::Tensor finished(const at::Tensor& y, const at::Tensor& input) {
  return at::empty_symint(input.sym_sizes(), input.options(), at::MemoryFormat::ChannelsLast).copy_(y);
}

}  // namespace

void check_local_response_norm(const at::Tensor& input, int64_t size) {
  constexpr const char* op = "local_response_norm";
  check_rank(op, "input", input, 4);
  TORCH_CHECK(at::isFloatingType(input.scalar_type()), "cnnfast::", op,
              ": input must be of a floating-point type, not ", input.scalar_type());
  TORCH_CHECK(size >= 1, "cnnfast::", op, ": size must be at least 1, not ", size);
}

at::Tensor local_response_norm_composite(const at::Tensor& input, int64_t size, double alpha, double beta,
                                         double k) {
  check_local_response_norm(input, size);
  if (input.numel() == 0) return finished(input, input);
  const at::Tensor x = as_type(input, working_type(input.scalar_type()));
  return finished(x / base_of(x, size, alpha, k).pow(beta), input);
}

// With d the base of the power: dx = g / d^beta - 2 alpha beta x mean(g x / d^(beta + 1)), the mean over the
// channels whose window holds this one.
at::Tensor local_response_norm_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                  int64_t size, double alpha, double beta, double k) {
  check_local_response_norm(input, size);
  if (input.numel() == 0) return finished(input, input);
  const auto type = working_type(input.scalar_type());
  const at::Tensor x = as_type(input, type), base = base_of(x, size, alpha, k);
  const at::Tensor direct = as_type(grad_output, type) / base.pow(beta);
  const at::Tensor shared = window_mean(direct * x / base, size, (size - 1) / 2);
  return finished(direct - x * shared * (2.0 * alpha * beta), input);
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("local_response_norm", TORCH_FN(local_response_norm_composite));
  m.impl("local_response_norm_backward", TORCH_FN(local_response_norm_backward_composite));
}

}  // namespace cnnfast
