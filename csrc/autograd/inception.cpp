// Gradients of inception.
#include "ops/inception.h"

#include "autograd/lists.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(inception_composite);
using Backward = decltype(inception_backward);

struct Call {
  const at::Tensor& input;
  at::TensorList weights;
  const OptionalTensors& biases;
  at::IntArrayRef branches;
};

class Inception : public torch::autograd::Function<Inception> {
 public:
  // The first list is what gets edges: the tensors that are present in `arguments`.
  static variable_list forward(AutogradContext* ctx, at::TensorList, const ArgumentList& arguments,
                               const Call& call) {
    static auto op = typed_operator<Forward>("cnnfast::inception");
    at::AutoDispatchBelowADInplaceOrView below;
    variable_list outputs = op.call(call.input, call.weights, call.biases, call.branches);
    ctx->saved_data["presence"] = arguments.presence();
    ctx->saved_data["needs"] = arguments.needs();
    ctx->saved_data["branches"] = call.branches.vec();
    ctx->saved_data["weights"] = static_cast<int64_t>(call.weights.size());
    ArgumentList saved;
    saved.add(call.input);
    saved.add(call.weights);
    saved.add(at::TensorList(outputs));
    ctx->save_for_backward(saved.all());
    ctx->mark_non_differentiable({outputs.begin() + 1, outputs.end()});
    ctx->set_materialize_grads(false);  // no zeros for the outputs that have no gradient
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::inception_backward");
    const auto presence = ctx->saved_data["presence"].toBoolList(),
               needs = ctx->saved_data["needs"].toBoolList();
    constexpr size_t others = 2;
    if (!grads[0].defined()) return gradient_list(presence, needs, {}, others);
    const auto saved = ctx->get_saved_variables();
    const auto weights = static_cast<size_t>(ctx->saved_data["weights"].toInt());
    const at::TensorList all(saved);
    const auto branches = ctx->saved_data["branches"].toIntVector();
    const auto [input, grad_weights, grad_biases] =
        op.call(grads[0], saved[0], all.slice(1, weights), all.slice(1 + weights), branches, needs);
    ArgumentList gradients;
    gradients.add(input);
    gradients.add(at::TensorList(grad_weights));
    gradients.add(at::TensorList(grad_biases));
    return gradient_list(presence, needs, gradients.all(), others);
  }
};

std::vector<at::Tensor> inception_autograd(const at::Tensor& input, at::TensorList weights,
                                           const OptionalTensors& biases, at::IntArrayRef branches) {
  ArgumentList arguments;
  arguments.add(input);
  arguments.add(weights);
  arguments.add(biases);
  const auto present = arguments.present();
  const Recording recording;
  return Inception::apply(at::TensorList(present), arguments, Call{input, weights, biases, branches});
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("inception", TORCH_FN(inception_autograd));
  m.impl("inception_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
