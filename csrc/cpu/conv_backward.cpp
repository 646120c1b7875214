#include "cpu/conv_backward.h"

#include <ATen/Functions.h>

#include "cpu/conv_weight_grad.h"
#include "cpu/depthwise_weight_grad.h"
#include "cpu/memory_pool.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {

ConvBackward::ConvBackward(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                           at::IntArrayRef output_sizes, bool need_input, bool need_weight)
    : input_(input),
      weight_(weight),
      params_(params),
      output_sizes_(output_sizes.vec()),
      need_input_(need_input),
      need_weight_(need_weight) {
  if (need_input) found_.input = gradient_empty_like(input);
}

ImageGroups ConvBackward::groups() const {
  const int64_t ph = params_.padding[0], pw = params_.padding[1];
  const int64_t of_input = image_values(input_.sizes(), {ph, pw, ph, pw}),
                of_gradient = image_values(output_sizes_, border(input_.size(0)));
  return {input_.size(0), of_input + of_gradient, weight_.numel(), input_.scalar_type() != at::kFloat};
}

Border ConvBackward::border(int64_t images) const {
  if (!need_input_ || !InputGradient::serves(input_, weight_, params_)) return {};
  std::vector<int64_t> sizes = output_sizes_;
  sizes[0] = images;
  return InputGradient(images_at(input_, 0, images), weight_, params_, sizes).border();
}

void ConvBackward::add(int64_t first, const Bordered& grad) {
  const at::Tensor images = images_at(input_, first, grad.tensor.size(0));
  if (need_weight_) add_weight(images, grad.tensor);
  if (need_input_) add_input(first, images, grad);
}

void ConvBackward::add_weight(const at::Tensor& images, const at::Tensor& grad) {
  const bool ours = serves_weight_gradient(weight_, params_.groups);
  const at::Tensor own =
      ours ? weight_gradient(grad, images, weight_, params_)
      : serves_depthwise_gradient(grad, images, weight_, params_.groups)
          ? depthwise_weight_grad(grad, images, weight_, params_)
          : conv_gradients(grad, widened_kept(images), weight_, params_, {false, true, false}).weight;
  if (found_.weight.defined())
    found_.weight.add_(own);
  else
    found_.weight = own;
}

void ConvBackward::add_input(int64_t first, const at::Tensor& images, const Bordered& grad) {
  const at::Tensor to = images_at(found_.input, first, images.size(0));
  if (!InputGradient::serves(images, weight_, params_)) {
    to.copy_(conv_gradients(grad.tensor, widened_kept(images), weight_, params_, {true, false, false}).input);
    return;
  }
  const InputGradient gradient(images, weight_, params_, grad.tensor.sizes());
  if (is_plain_float(to) && channels_adjacent(to)) return gradient.run_into(grad.view, to);
  if (!channels_adjacent(to)) {
    to.copy_(gradient.run(grad.view));
    return;
  }
  const at::Tensor wide =
      gradient_empty(to.sizes(), to.options().dtype(at::kFloat), at::MemoryFormat::ChannelsLast);
  gradient.run_into(grad.view, wide);
  write_images(view_of(wide), to);
}

}  // namespace cnnfast::cpu
