// Gradient of local_response_norm.
#include "ops/local_response_norm.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = decltype(local_response_norm_composite);
using Backward = decltype(local_response_norm_backward_composite);

class LocalResponseNorm : public torch::autograd::Function<LocalResponseNorm> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, int64_t size, double alpha,
                            double beta, double k) {
    static auto op = typed_operator<Forward>("cnnfast::local_response_norm");
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["size"] = size;
    ctx->saved_data["alpha"] = alpha;
    ctx->saved_data["beta"] = beta;
    ctx->saved_data["k"] = k;
    ctx->save_for_backward({input});
    return op.call(input, size, alpha, beta, k);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<Backward>("cnnfast::local_response_norm_backward");
    variable_list result(5);
    if (!grads[0].defined()) return result;
    result[0] = op.call(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["size"].toInt(),
                        ctx->saved_data["alpha"].toDouble(), ctx->saved_data["beta"].toDouble(),
                        ctx->saved_data["k"].toDouble());
    return result;
  }
};

at::Tensor local_response_norm_autograd(const at::Tensor& input, int64_t size, double alpha, double beta,
                                        double k) {
  return LocalResponseNorm::apply(input, size, alpha, beta, k);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("local_response_norm", TORCH_FN(local_response_norm_autograd));
  m.impl("local_response_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
