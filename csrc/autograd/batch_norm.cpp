// Gradients of conv2d_batch_norm.
#include "ops/batch_norm.h"

#include <ATen/Functions.h>

#include "autograd/common.h"
#include "ops/batch_norm2d_relu.h"
#include "ops/conv_gradients.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(conv2d_batch_norm_composite);
using Backward = BatchNormGradients(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                                    const at::Tensor&, const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                                    at::IntArrayRef, int64_t, double, std::string_view, std::array<bool, 6>);

class Conv2dBatchNorm : public torch::autograd::Function<Conv2dBatchNorm> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& bn_weight,
                               const OptionalTensor& bn_bias, const OptionalTensor& residual,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, double eps, std::string_view activation) {
    static auto op = typed_operator<Forward>("cnnfast::conv2d_batch_norm");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, conv, mean, var] = op.call(input, weight, bias, bn_weight, bn_bias, residual, stride,
                                                   padding, dilation, groups, eps, activation);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(),     weight.requires_grad(),  wants_gradient(bias),
                          wants_gradient(bn_weight), wants_gradient(bn_bias), wants_gradient(residual)};
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activation"] = std::string(activation);
    const at::Tensor conv_mean = present(bias) ? mean - as_type(*bias, mean.scalar_type()) : mean;
    ctx->save_for_backward({input, weight, value_or_undefined(bn_weight), conv, conv_mean, var,
                            output_or_bias_to_save("conv2d_batch_norm", output, bn_bias, activation)});
    ctx->mark_non_differentiable({conv, mean, var});
    ctx->set_materialize_grads(false);
    return {output, conv, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::conv2d_batch_norm_backward");
    variable_list result(12);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    std::array<bool, 6> mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = needs[i];
    const auto stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(),
               dilation = ctx->saved_data["dilation"].toIntVector();
    const auto [input, weight, bias, bn_weight, bn_bias, residual] = op.call(
        grads[0], saved[0], saved[1], saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor(),
        saved[3], saved[4], saved[5],
        saved_output_or_bias("conv2d_batch_norm_backward", saved[6], grads[0],
                             ctx->saved_data["activation"].toStringRef()),
        stride, padding, dilation, ctx->saved_data["groups"].toInt(), ctx->saved_data["eps"].toDouble(),
        ctx->saved_data["activation"].toStringRef(), mask);
    const at::Tensor gradients[6] = {input, weight, bias, bn_weight, bn_bias, residual};
    for (size_t i = 0; i < mask.size(); ++i) result[i] = gradient_or_none(mask[i], gradients[i]);
    return result;
  }
};

// The same with ReLU, of which bits are kept for the gradient.
class Conv2dBatchNormRelu : public torch::autograd::Function<Conv2dBatchNormRelu> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& bn_weight,
                               const OptionalTensor& bn_bias, const OptionalTensor& residual,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, double eps) {
    static auto op =
        typed_operator<decltype(conv2d_batch_norm_relu_composite)>("cnnfast::conv2d_batch_norm_relu");
    check_conv2d_batch_norm({input,
                             weight,
                             bias,
                             bn_weight,
                             bn_bias,
                             residual,
                             {stride, padding, dilation, groups},
                             eps,
                             "relu"});
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, conv, mean, var, positive] =
        op.call(input, weight, bn_weight, bn_bias, residual, stride, padding, dilation, groups, eps);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(),     weight.requires_grad(),  wants_gradient(bias),
                          wants_gradient(bn_weight), wants_gradient(bn_bias), wants_gradient(residual)};
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward({input, weight, value_or_undefined(bn_weight), conv, mean, var, positive});
    const at::Tensor shown = present(bias) ? mean + as_type(*bias, mean.scalar_type()) : mean;
    ctx->mark_non_differentiable({conv, shown, var});
    ctx->set_materialize_grads(false);
    return {output, conv, shown, var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto normalise =
        typed_operator<decltype(batch_norm2d_relu_backward_composite)>("cnnfast::batch_norm2d_relu_backward");
    variable_list result(11);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();  // input, weight, bn_weight, conv, mean, var, positive
    const auto needs = ctx->saved_data["needs"].toBoolList();
    const bool need_conv = needs[0] || needs[1];
    const auto [grad_conv, bn_weight, bn_bias, residual] = normalise.call(
        grads[0], saved[3], saved[4], saved[5],
        saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor(), saved[6],
        ctx->saved_data["eps"].toDouble(), std::array<bool, 4>{need_conv, needs[3], needs[4], needs[5]});
    const auto stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(),
               dilation = ctx->saved_data["dilation"].toIntVector();
    const ConvGradients conv = conv_gradients(grad_conv, saved[0], saved[1],
                                              {stride, padding, dilation, ctx->saved_data["groups"].toInt()},
                                              {needs[0], needs[1], false});
    result[0] = gradient_or_none(needs[0], conv.input);
    result[1] = gradient_or_none(needs[1], conv.weight);
    // The mean takes any bias away again: its gradient is zero, not merely small.
    if (needs[2]) result[2] = at::zeros_like(saved[4], saved[0].options());
    result[3] = gradient_or_none(needs[3], bn_weight);
    result[4] = gradient_or_none(needs[4], bn_bias);
    result[5] = gradient_or_none(needs[5], residual);
    return result;
  }
};

BatchNormOutputs conv2d_batch_norm_autograd(const at::Tensor& input, const at::Tensor& weight,
                                            const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                            const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                            at::IntArrayRef stride, at::IntArrayRef padding,
                                            at::IntArrayRef dilation, int64_t groups, double eps,
                                            std::string_view activation) {
  const Recording recording;
  if (!computes_again(input, residual) &&
      keeps_pre_activation("conv2d_batch_norm", activation,
                           {input, weight, bias, bn_weight, bn_bias, residual})) {
    const auto plain = Conv2dBatchNorm::apply(input, weight, bias, bn_weight, bn_bias, residual, stride,
                                              padding, dilation, groups, eps, "none");
    return {activate(plain[0], parse_activation("conv2d_batch_norm", activation)), plain[1], plain[2],
            plain[3]};
  }
  if (keeps_bits(input, activation)) {
    const auto out = Conv2dBatchNormRelu::apply(input, weight, bias, bn_weight, bn_bias, residual, stride,
                                                padding, dilation, groups, eps);
    return {out[0], out[1], out[2], out[3]};
  }
  const auto out = Conv2dBatchNorm::apply(input, weight, bias, bn_weight, bn_bias, residual, stride, padding,
                                          dilation, groups, eps, activation);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm_autograd));
  m.impl("conv2d_batch_norm_relu", torch::autograd::autogradNotImplementedFallback());
  m.impl("conv2d_batch_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
