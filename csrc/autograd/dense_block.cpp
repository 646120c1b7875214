// Gradients of dense_block.
#include "ops/dense_block.h"

#include "autograd/lists.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(dense_block_composite);
using Backward = decltype(dense_block_backward_composite);

class DenseBlock : public torch::autograd::Function<DenseBlock> {
 public:
  // The first list is what gets edges: the tensors that are present in `arguments`. Means and variances that
  // are given are constants.
  static variable_list forward(AutogradContext* ctx, at::TensorList, const ArgumentList& arguments,
                               const DenseBlockArgs& a) {
    static auto op = typed_operator<Forward>("cnnfast::dense_block");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, mean, var] = op.call(a.input, a.weights, a.biases, a.bn_weights, a.bn_biases, a.means,
                                             a.vars, a.eps, a.activation);
    ctx->saved_data["presence"] = arguments.presence();
    ctx->saved_data["needs"] = arguments.needs();
    ctx->saved_data["layers"] = static_cast<int64_t>(a.weights.size());
    ctx->saved_data["eps"] = a.eps;
    ctx->saved_data["activation"] = std::string(a.activation);
    ArgumentList saved;
    saved.add(output);
    saved.add(mean);
    saved.add(var);
    saved.add(a.weights);
    saved.add(a.bn_weights);
    saved.add(a.bn_biases);
    if (!uses_batch_statistics(a.means, a.vars)) {
      saved.add(a.means);
      saved.add(a.vars);
    }
    ctx->save_for_backward(saved.all());
    ctx->mark_non_differentiable({mean, var});
    ctx->set_materialize_grads(false);  // no zeros for the outputs that have no gradient
    return {output, mean, var};
  }

  // A reference to the list: a copy of it would hold the gradient as well.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static auto keeping = typed_operator<Backward>("cnnfast::dense_block_backward");
    static auto using_up = typed_operator<Backward>("cnnfast::dense_block_backward_");
    const auto presence = ctx->saved_data["presence"].toBoolList(),
               needs = ctx->saved_data["needs"].toBoolList();
    constexpr size_t others = 2;
    if (!grads[0].defined()) return gradient_list(presence, needs, {}, others);
    const auto saved = ctx->get_saved_variables();
    const auto layers = static_cast<size_t>(ctx->saved_data["layers"].toInt());
    const auto list = [&](size_t i) {  // absent means and variances: empty lists
      return 3 + i * layers < saved.size() ? at::TensorList(saved).slice(3 + i * layers, layers)
                                           : at::TensorList();
    };
    const auto& op = held_here_alone(grads[0]) ? using_up : keeping;
    const auto [input, weights, biases, bn_weights, bn_biases] =
        op.call(grads[0], saved[0], list(0), optionals(list(1)), optionals(list(2)), optionals(list(3)),
                optionals(list(4)), saved[1], saved[2], ctx->saved_data["eps"].toDouble(),
                ctx->saved_data["activation"].toStringRef(), needs);
    ArgumentList gradients;
    gradients.add(input);
    for (const auto* found : {&weights, &biases, &bn_weights, &bn_biases})
      gradients.add(at::TensorList(*found));
    return gradient_list(presence, needs, gradients.all(), others);
  }
};

DenseBlockOutputs dense_block_autograd(const at::Tensor& input, at::TensorList weights,
                                       const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                       const OptionalTensors& bn_biases, const OptionalTensors& means,
                                       const OptionalTensors& vars, double eps, std::string_view activation) {
  ArgumentList arguments;
  arguments.add(input);
  arguments.add(weights);
  arguments.add(biases);
  arguments.add(bn_weights);
  arguments.add(bn_biases);
  const auto present = arguments.present();
  const Recording recording;
  const auto out = DenseBlock::apply(
      at::TensorList(present), arguments,
      DenseBlockArgs{input, weights, biases, bn_weights, bn_biases, means, vars, eps, activation});
  return {out[0], out[1], out[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("dense_block", TORCH_FN(dense_block_autograd));
  m.impl("dense_block_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("dense_block_backward_", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
