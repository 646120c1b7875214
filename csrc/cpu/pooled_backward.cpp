#include "cpu/pooled_backward.h"

#include "cpu/channel_values.h"
#include "cpu/conv2d.h"
#include "cpu/paired_conv.h"
#include "cpu/paired_weight_grad.h"
#include "cpu/pooled_rows.h"
#include "cpu/strip_backward.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Whether the convolution's gradients are found by products of pairs, from one tensor for both.
bool takes_pairs(const StageValues& conv, const Conv2dParams& params) {
  return multiplies_pairs(conv_geometry(conv.input, conv.weight, params, conv.output.sizes())) &&
         (!conv.wanted.weight || pairs_serve_weight_gradient(conv.weight));
}

ConvGradients as_given(const StageValues& conv, const at::Tensor& input, const at::Tensor& weight,
                       const std::vector<double>& bias) {
  const auto type = conv.weight.scalar_type();
  const auto rounded = [](at::ScalarType to, const at::Tensor& t) {
    return t.defined() ? rounded_to(to, t) : t;
  };
  return {rounded(conv.input.scalar_type(), input), rounded(type, weight),
          conv.wanted.bias ? channel_tensor(bias, conv.weight.options()).to(type) : at::Tensor()};
}

}  // namespace

std::optional<ConvGradients> pooled_backward(const at::Tensor& grad_output, const StageValues& conv,
                                             const StageValues& pool) {
  const Conv2dParams params = conv.stage.conv_params();
  if (!conv.wanted.any() || conv.output.numel() == 0 || pool.output.numel() == 0) return std::nullopt;
  if (takes_pairs(conv, params)) return std::nullopt;
  const PooledRows rows(grad_output, conv.output, conv.stage.activation, pool.stage);
  const at::Tensor weight = widened_kept(conv.weight);
  if (const auto found = strip_backward(rows, conv.output, conv.input, weight, params, conv.wanted))
    return as_given(conv, found->input, found->weight, found->bias);
  return std::nullopt;
}

}  // namespace cnnfast::cpu
