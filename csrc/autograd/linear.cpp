// Gradients of linear.
#include "ops/linear.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(linear_composite);
using Backward = std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                const at::Tensor&, const at::Tensor&,
                                                                std::string_view, std::array<bool, 3>);

class Linear : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const OptionalTensor& bias, std::string_view activation) {
    static auto op = typed_operator<Forward>("cnnfast::linear");
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor output = op.call(input, weight, bias, activation);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(), weight.requires_grad(), wants_gradient(bias)};
    ctx->saved_data["activation"] = std::string(activation);
    ctx->save_for_backward({input, weight, output_to_save(output, activation)});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::linear_backward");
    if (!grads[0].defined()) return variable_list(4);
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    const std::array<bool, 3> mask{needs[0], needs[1], needs[2]};
    const auto [input, weight, bias] = op.call(grads[0], saved[0], saved[1], saved_output(saved[2], grads[0]),
                                               ctx->saved_data["activation"].toStringRef(), mask);
    return {gradient_or_none(mask[0], input), gradient_or_none(mask[1], weight),
            gradient_or_none(mask[2], bias), at::Tensor()};
  }
};

at::Tensor linear_autograd(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           std::string_view activation) {
  const Recording recording;
  if (keeps_pre_activation("linear", activation, {input, weight, bias}))
    return activate(Linear::apply(input, weight, bias, "none"), parse_activation("linear", activation));
  return Linear::apply(input, weight, bias, activation);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("linear", TORCH_FN(linear_autograd));
  m.impl("linear_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
