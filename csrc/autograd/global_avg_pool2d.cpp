// Gradient of global_avg_pool2d.
#include "ops/global_avg_pool2d.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(global_avg_pool2d_composite);
using Backward = at::Tensor(const at::Tensor&, const at::Tensor&);

class GlobalAvgPool2d : public torch::autograd::Function<GlobalAvgPool2d> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input) {
    static auto op = typed_operator<Forward>("cnnfast::global_avg_pool2d");
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({input});
    return op.call(input);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::global_avg_pool2d_backward");
    if (!grads[0].defined()) return {at::Tensor()};
    return {op.call(grads[0], ctx->get_saved_variables()[0])};
  }
};

at::Tensor global_avg_pool2d_autograd(const at::Tensor& input) { return GlobalAvgPool2d::apply(input); }

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("global_avg_pool2d", TORCH_FN(global_avg_pool2d_autograd));
  m.impl("global_avg_pool2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
