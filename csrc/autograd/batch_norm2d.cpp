// Gradients of batch_norm2d, batch_norm2d_relu and batch_norm_act.
#include "autograd/common.h"
#include "ops/batch_norm2d_relu.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using GivenForward = decltype(batch_norm_act_composite);
using BatchForward = decltype(batch_norm2d_composite);
using ReluForward = decltype(batch_norm2d_relu_composite);
using Backward = decltype(batch_norm2d_backward_composite);
using ReluBackward = decltype(batch_norm2d_relu_backward_composite);

struct Options {
  double eps;
  std::string_view activation;
  bool batch_statistics;
};

void save(AutogradContext* ctx, const Options& options, const std::array<bool, 6>& needs,
          const variable_list& tensors) {
  ctx->saved_data["needs"] = std::vector<bool>(needs.begin(), needs.end());
  ctx->saved_data["eps"] = options.eps;
  ctx->saved_data["activation"] = std::string(options.activation);
  ctx->saved_data["batch_statistics"] = options.batch_statistics;
  ctx->save_for_backward(tensors);
}

// Gradients of input, mean, var, weight, bias, residual; undefined where not wanted.
std::array<at::Tensor, 6> gradients(AutogradContext* ctx, const at::Tensor& grad) {
  static auto op = typed_operator<Backward>("cnnfast::batch_norm2d_backward");
  const auto saved = ctx->get_saved_variables();  // input, mean, var, weight, output
  const auto needs = ctx->saved_data["needs"].toBoolList();
  std::array<bool, 6> mask;
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = needs[i];
  const auto [input, mean, var, weight, bias, residual] = op.call(
      grad, saved[0], saved[1], saved[2], saved[3].defined() ? OptionalTensor(saved[3]) : OptionalTensor(),
      saved_output_or_bias("batch_norm2d_backward", saved[4], grad,
                           ctx->saved_data["activation"].toStringRef()),
      ctx->saved_data["eps"].toDouble(), ctx->saved_data["activation"].toStringRef(),
      ctx->saved_data["batch_statistics"].toBool(), mask);
  std::array<at::Tensor, 6> result{input, mean, var, weight, bias, residual};
  for (size_t i = 0; i < mask.size(); ++i) result[i] = gradient_or_none(mask[i], result[i]);
  return result;
}

class BatchNormAct : public torch::autograd::Function<BatchNormAct> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& mean,
                            const at::Tensor& var, const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, double eps, std::string_view activation) {
    static auto op = typed_operator<GivenForward>("cnnfast::batch_norm_act");
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor output = op.call(input, mean, var, weight, bias, residual, eps, activation);
    save(ctx, {eps, activation, false},
         {input.requires_grad(), mean.requires_grad(), var.requires_grad(), wants_gradient(weight),
          wants_gradient(bias), wants_gradient(residual)},
         {input, mean, var, value_or_undefined(weight),
          output_or_bias_to_save("batch_norm_act", output, bias, activation)});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(8);
    const auto g = gradients(ctx, grads[0]);
    return {g[0], g[1], g[2], g[3], g[4], g[5], at::Tensor(), at::Tensor()};
  }
};

class BatchNorm2d : public torch::autograd::Function<BatchNorm2d> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                               std::string_view activation) {
    static auto op = typed_operator<BatchForward>("cnnfast::batch_norm2d");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, var] = op.call(input, weight, bias, residual, eps, activation);
    save(ctx, {eps, activation, true},
         {input.requires_grad(), false, false, wants_gradient(weight), wants_gradient(bias),
          wants_gradient(residual)},
         {input, mean, var, value_or_undefined(weight),
          output_or_bias_to_save("batch_norm2d", output, bias, activation)});
    ctx->mark_non_differentiable({mean, var});
    return {output, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(6);
    const auto g = gradients(ctx, grads[0]);
    return {g[0], g[3], g[4], g[5], at::Tensor(), at::Tensor()};
  }
};

class BatchNorm2dRelu : public torch::autograd::Function<BatchNorm2dRelu> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& residual, double eps) {
    static auto op = typed_operator<ReluForward>("cnnfast::batch_norm2d_relu");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, var, positive] = op.call(input, weight, bias, residual, eps);
    ctx->saved_data["needs"] = std::vector<bool>{input.requires_grad(), wants_gradient(weight),
                                                 wants_gradient(bias), wants_gradient(residual)};
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward({input, mean, var, value_or_undefined(weight), positive});
    ctx->mark_non_differentiable({mean, var, positive});
    ctx->set_materialize_grads(false);
    return {output, mean, var, positive};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<ReluBackward>("cnnfast::batch_norm2d_relu_backward");
    variable_list result(5);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto needs = ctx->saved_data["needs"].toBoolList();
    std::array<bool, 4> mask;
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = needs[i];
    const auto [input, weight, bias, residual] =
        op.call(grads[0], saved[0], saved[1], saved[2],
                saved[3].defined() ? OptionalTensor(saved[3]) : OptionalTensor(), saved[4],
                ctx->saved_data["eps"].toDouble(), mask);
    const at::Tensor gradients[4] = {input, weight, bias, residual};
    for (size_t i = 0; i < mask.size(); ++i) result[i] = gradient_or_none(mask[i], gradients[i]);
    return result;
  }
};

at::Tensor batch_norm_act_autograd(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& residual, double eps, std::string_view activation) {
  if (!computes_again(input, residual) &&
      keeps_pre_activation("batch_norm_act", activation, {input, mean, var, weight, bias, residual}))
    return activate(BatchNormAct::apply(input, mean, var, weight, bias, residual, eps, "none"),
                    parse_activation("batch_norm_act", activation));
  return BatchNormAct::apply(input, mean, var, weight, bias, residual, eps, activation);
}

BatchNorm2dOutputs batch_norm2d_autograd(const at::Tensor& input, const OptionalTensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& residual,
                                         double eps, std::string_view activation) {
  if (!computes_again(input, residual) &&
      keeps_pre_activation("batch_norm2d", activation, {input, weight, bias, residual})) {
    const auto plain = BatchNorm2d::apply(input, weight, bias, residual, eps, "none");
    return {activate(plain[0], parse_activation("batch_norm2d", activation)), plain[1], plain[2]};
  }
  if (keeps_bits(input, activation)) {
    const auto out = BatchNorm2dRelu::apply(input, weight, bias, residual, eps);
    return {out[0], out[1], out[2]};
  }
  const auto out = BatchNorm2d::apply(input, weight, bias, residual, eps, activation);
  return {out[0], out[1], out[2]};
}

BatchNorm2dReluOutputs batch_norm2d_relu_autograd(const at::Tensor& input, const OptionalTensor& weight,
                                                  const OptionalTensor& bias, const OptionalTensor& residual,
                                                  double eps) {
  const auto out = BatchNorm2dRelu::apply(input, weight, bias, residual, eps);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("batch_norm_act", TORCH_FN(batch_norm_act_autograd));
  m.impl("batch_norm2d", TORCH_FN(batch_norm2d_autograd));
  m.impl("batch_norm2d_relu", TORCH_FN(batch_norm2d_relu_autograd));
  m.impl("batch_norm2d_relu_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("batch_norm2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
