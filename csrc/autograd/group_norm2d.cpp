// The gradient of group_norm2d. Its input is kept, not its output: the activation's argument is computed
// again.
#include "ops/group_norm2d.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(group_norm2d_composite);
using Backward = decltype(group_norm2d_backward_composite);

OptionalTensor optional(const at::Tensor& saved) {
  return saved.defined() ? OptionalTensor(saved) : OptionalTensor();
}

class GroupNorm2d : public torch::autograd::Function<GroupNorm2d> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, int64_t groups,
                               const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                               std::string_view activation) {
    static auto op = typed_operator<Forward>("cnnfast::group_norm2d");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, var] = op.call(input, groups, weight, bias, eps, activation);
    ctx->saved_data["needs"] =
        std::vector<bool>{input.requires_grad(), wants_gradient(weight), wants_gradient(bias)};
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["activation"] = std::string(activation);
    ctx->save_for_backward({input, mean, var, value_or_undefined(weight), value_or_undefined(bias)});
    ctx->mark_non_differentiable({mean, var});
    ctx->set_materialize_grads(false);
    return {output, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::group_norm2d_backward");
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    const auto [input, weight, bias] =
        op.call(grads[0], saved[0], saved[1], saved[2], ctx->saved_data["groups"].toInt(), optional(saved[3]),
                optional(saved[4]), ctx->saved_data["eps"].toDouble(),
                ctx->saved_data["activation"].toStringRef(), {needs[0], needs[1], needs[2]});
    result[0] = gradient_or_none(needs[0], input);
    result[2] = gradient_or_none(needs[1], weight);
    result[3] = gradient_or_none(needs[2], bias);
    return result;
  }
};

GroupNorm2dOutputs group_norm2d_autograd(const at::Tensor& input, int64_t groups,
                                         const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                                         std::string_view activation) {
  const auto out = GroupNorm2d::apply(input, groups, weight, bias, eps, activation);
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("group_norm2d", TORCH_FN(group_norm2d_autograd));
  m.impl("group_norm2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
