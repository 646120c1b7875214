// Gradients of bn_act_conv2d.
#include "ops/bn_act_conv2d.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(bn_act_conv2d_composite);
using Backward = BatchNormGradients(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                    const OptionalTensor&, const OptionalTensor&, const at::Tensor&,
                                    const at::Tensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
                                    int64_t, double, std::string_view, bool, std::array<bool, 6>);

OptionalTensor optional(const at::Tensor& saved) {
  return saved.defined() ? OptionalTensor(saved) : OptionalTensor();
}

class BnActConv2d : public torch::autograd::Function<BnActConv2d> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& bn_weight,
                               const OptionalTensor& bn_bias, const OptionalTensor& given_mean,
                               const OptionalTensor& given_var, const OptionalTensor& residual,
                               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                               int64_t groups, double eps, std::string_view pre_activation) {
    static auto op = typed_operator<Forward>("cnnfast::bn_act_conv2d");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, var] =
        op.call(input, weight, bias, bn_weight, bn_bias, given_mean, given_var, residual, stride, padding,
                dilation, groups, eps, pre_activation);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(),     weight.requires_grad(),  wants_gradient(bias),
                          wants_gradient(bn_weight), wants_gradient(bn_bias), wants_gradient(residual)};
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["pre_activation"] = std::string(pre_activation);
    const bool given = present(given_mean);
    ctx->saved_data["batch_statistics"] = !given;
    ctx->save_for_backward({input, weight, value_or_undefined(bn_weight), value_or_undefined(bn_bias),
                            given ? *given_mean : mean, given ? *given_var : var});
    ctx->mark_non_differentiable({mean, var});
    return {output, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::bn_act_conv2d_backward");
    variable_list result(14);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    std::array<bool, 6> mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = needs[i];
    const auto stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(),
               dilation = ctx->saved_data["dilation"].toIntVector();
    const auto [input, weight, bias, bn_weight, bn_bias, residual] = op.call(
        grads[0], saved[0], saved[1], optional(saved[2]), optional(saved[3]), saved[4], saved[5], stride,
        padding, dilation, ctx->saved_data["groups"].toInt(), ctx->saved_data["eps"].toDouble(),
        ctx->saved_data["pre_activation"].toStringRef(), ctx->saved_data["batch_statistics"].toBool(), mask);
    const at::Tensor gradients[6] = {input, weight, bias, bn_weight, bn_bias, residual};
    constexpr size_t place[6] = {0, 1, 2, 3, 4, 7};
    for (size_t i = 0; i < mask.size(); ++i) result[place[i]] = gradient_or_none(mask[i], gradients[i]);
    return result;
  }
};

BatchNorm2dOutputs bn_act_conv2d_autograd(const at::Tensor& input, const at::Tensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                          const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                          const OptionalTensor& var, const OptionalTensor& residual,
                                          at::IntArrayRef stride, at::IntArrayRef padding,
                                          at::IntArrayRef dilation, int64_t groups, double eps,
                                          std::string_view pre_activation) {
  const Recording recording;
  const auto out = BnActConv2d::apply(input, weight, bias, bn_weight, bn_bias, mean, var, residual, stride,
                                      padding, dilation, groups, eps, pre_activation);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d_autograd));
  m.impl("bn_act_conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
