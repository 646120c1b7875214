// Gradients of conv2d.
#include "ops/conv2d.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(conv2d_composite);
using Backward = decltype(conv2d_backward);

class Conv2d : public torch::autograd::Function<Conv2d> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, const OptionalTensor& scale,
                            const OptionalTensor& residual, at::IntArrayRef stride, at::IntArrayRef padding,
                            at::IntArrayRef dilation, int64_t groups, std::string_view activation) {
    static auto op = typed_operator<Forward>("cnnfast::conv2d");
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor output =
        op.call(input, weight, bias, scale, residual, stride, padding, dilation, groups, activation);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(), weight.requires_grad(), wants_gradient(bias),
                          wants_gradient(scale), wants_gradient(residual)};
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["activation"] = std::string(activation);
    ctx->save_for_backward({input, weight, value_or_undefined(scale), output_to_save(output, activation)});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::conv2d_backward");
    variable_list none(10);
    if (!grads[0].defined()) return none;
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    std::array<bool, 5> mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = needs[i];
    const auto stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(),
               dilation = ctx->saved_data["dilation"].toIntVector();
    const auto [input, weight, bias, scale, residual] = op.call(
        grads[0], saved[0], saved[1], saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor(),
        saved_output(saved[3], grads[0]), stride, padding, dilation, ctx->saved_data["groups"].toInt(),
        ctx->saved_data["activation"].toStringRef(), mask);
    none[0] = gradient_or_none(mask[0], input);
    none[1] = gradient_or_none(mask[1], weight);
    none[2] = gradient_or_none(mask[2], bias);
    none[3] = gradient_or_none(mask[3], scale);
    none[4] = gradient_or_none(mask[4], residual);
    return none;
  }
};

at::Tensor conv2d_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& scale, const OptionalTensor& residual,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                           int64_t groups, std::string_view activation) {
  const Recording recording;
  if (keeps_pre_activation("conv2d", activation, {input, weight, bias, scale, residual}))
    return activate(
        Conv2d::apply(input, weight, bias, scale, residual, stride, padding, dilation, groups, "none"),
        parse_activation("conv2d", activation));
  return Conv2d::apply(input, weight, bias, scale, residual, stride, padding, dilation, groups, activation);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("conv2d", TORCH_FN(conv2d_autograd));
  m.impl("conv2d_input_grad", torch::autograd::autogradNotImplementedFallback());
  m.impl("conv2d_weight_grad", torch::autograd::autogradNotImplementedFallback());
  m.impl("conv2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
