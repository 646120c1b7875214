// Gradients of the pooling operators.
#include "ops/pool2d.h"

#include "autograd/common.h"

namespace cnnfast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using MaxForward = decltype(max_pool2d_composite);
using MaxBackward = decltype(max_pool2d_backward_composite);
using AvgForward = decltype(avg_pool2d_composite);
using AvgBackward = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                               at::IntArrayRef, bool, bool, std::optional<int64_t>);

class MaxPool2d : public torch::autograd::Function<MaxPool2d> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                            bool ceil_mode) {
    static auto op = typed_operator<MaxForward>("cnnfast::max_pool2d");
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["kernel_size"] = kernel_size.vec();
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["dilation"] = dilation.vec();
    ctx->saved_data["ceil_mode"] = ceil_mode;
    ctx->save_for_backward({input});
    return op.call(input, kernel_size, stride, padding, dilation, ceil_mode);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<MaxBackward>("cnnfast::max_pool2d_backward");
    variable_list result(6);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto kernel = ctx->saved_data["kernel_size"].toIntVector(),
               stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector(),
               dilation = ctx->saved_data["dilation"].toIntVector();
    result[0] =
        op.call(grads[0], saved[0], kernel, stride, padding, dilation, ctx->saved_data["ceil_mode"].toBool());
    return result;
  }
};

class AvgPool2d : public torch::autograd::Function<AvgPool2d> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, at::IntArrayRef kernel_size,
                            at::IntArrayRef stride, at::IntArrayRef padding, bool ceil_mode,
                            bool count_include_pad, std::optional<int64_t> divisor_override) {
    static auto op = typed_operator<AvgForward>("cnnfast::avg_pool2d");
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["kernel_size"] = kernel_size.vec();
    ctx->saved_data["stride"] = stride.vec();
    ctx->saved_data["padding"] = padding.vec();
    ctx->saved_data["ceil_mode"] = ceil_mode;
    ctx->saved_data["count_include_pad"] = count_include_pad;
    ctx->saved_data["divisor_override"] = divisor_override;
    ctx->save_for_backward({input});
    return op.call(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static auto op = typed_operator<AvgBackward>("cnnfast::avg_pool2d_backward");
    variable_list result(7);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    const auto kernel = ctx->saved_data["kernel_size"].toIntVector(),
               stride = ctx->saved_data["stride"].toIntVector(),
               padding = ctx->saved_data["padding"].toIntVector();
    result[0] = op.call(grads[0], saved[0], kernel, stride, padding, ctx->saved_data["ceil_mode"].toBool(),
                        ctx->saved_data["count_include_pad"].toBool(),
                        ctx->saved_data["divisor_override"].toOptional<int64_t>());
    return result;
  }
};

at::Tensor max_pool2d_autograd(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, at::IntArrayRef dilation, bool ceil_mode) {
  return MaxPool2d::apply(input, kernel_size, stride, padding, dilation, ceil_mode);
}

at::Tensor avg_pool2d_autograd(const at::Tensor& input, at::IntArrayRef kernel_size, at::IntArrayRef stride,
                               at::IntArrayRef padding, bool ceil_mode, bool count_include_pad,
                               std::optional<int64_t> divisor_override) {
  return AvgPool2d::apply(input, kernel_size, stride, padding, ceil_mode, count_include_pad,
                          divisor_override);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, Autograd, m) {
  m.impl("max_pool2d", TORCH_FN(max_pool2d_autograd));
  m.impl("max_pool2d_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("avg_pool2d", TORCH_FN(avg_pool2d_autograd));
  m.impl("avg_pool2d_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace cnnfast
