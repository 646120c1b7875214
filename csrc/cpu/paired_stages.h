// The stages of cpu/paired_backward: what each does for a group of images, by the thread that has them.
#pragma once
#include <vector>

#include "cpu/activation_rows16.h"
#include "cpu/memory_pool.h"
#include "cpu/narrow_pool.h"
#include "cpu/paired_backward.h"
#include "cpu/paired_input_grad.h"
#include "cpu/paired_weight_grad.h"
#include "cpu/pool2d.h"
#include "cpu/tensor_view.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {

// One convolution: what its gradient takes of memory, and what is done for a group of images.
class StageBackward {
 public:
  explicit StageBackward(PairedStage stage)
      : stage_(std::move(stage)),
        wanted_(stage_.wanted),
        size_(image_size(stage_.output)),
        output_(stage_.activation.kind == Activation::kNone ? Images16{} : bring_in16(stage_.output, {})),
        input_(bring_in16(stage_.input, {})),
        input_gradient_(stage_.input, stage_.weight, stage_.params, stage_.output.sizes()),
        weight_gradient_(group_geometry(stage_.output, stage_.weight, stage_.params),
                         {stage_.input.size(2), stage_.input.size(3)},
                         {stage_.params.padding[0], stage_.params.padding[1]}) {
    if (wanted_.input) border_ = input_gradient_.border();
    height_ = size_.height + border_.top + border_.bottom;
    width_ = size_.width + border_.left + border_.right;
  }

  bool serves() const { return !wanted_.input || input_gradient_.covers_all(); }
  bool bordered() const { return border_.top || border_.left || border_.bottom || border_.right; }
  const ImageSize& size() const { return size_; }
  // Of an image of the output's gradient, with its border.
  int64_t image_values() const { return height_ * width_ * size_.channels; }
  int64_t sums() const { return weight_gradient_.sums(); }
  PairedInputGradient& input_gradient() { return input_gradient_; }

  // Memory for the output's gradient of so many images.
  Images16 in(uint16_t* data, int64_t images) const {
    return {{data, image_values(), width_ * size_.channels, size_.channels},
            data,
            data + images * image_values(),
            {}};
  }
  View16 inside(const Images16& grad) const {
    View16 view = grad.view;
    view.data += border_.top * view.row + border_.left * view.pixel;
    return view;
  }
  void clear_border(const Images16& grad, int64_t images) const {
    zero_border(inside(grad), size_, border_, 0, images);
  }

  // From the output's gradient of the images from `first` on, which may lie in `grad` itself, to that of the
  // input. `own`: memory for the bias's sums of one image.
  void run(const View16& grad_output, int64_t first, int64_t images, const Images16& grad, const View16& to,
           bool first_sums, float* sums, double* bias, std::vector<float>& own) const {
    before_activation(grad_output, first, images, inside(grad), bias, own);
    if (wanted_.input) input_gradient_.run_images(grad, images, to, 0, 1);
    if (wanted_.weight) {
      View16 from = input_.view;
      from.data += first * from.image;
      weight_gradient_.add_images(from, inside(grad), images, first_sums, sums);
    }
  }

  PairedGradients found(const std::vector<double>& bias, const at::Tensor& wide) const {
    PairedGradients found;
    if (wanted_.weight) found.weight = wide.to(stage_.weight.scalar_type());
    found.bias.assign(static_cast<size_t>(size_.channels), 0.0);
    for (size_t i = 0; i < bias.size(); ++i) found.bias[i % found.bias.size()] += bias[i];
    return found;
  }
  // Share `thread` of `team`.
  void finish(float* sums, int64_t parts, const at::Tensor& to, int thread, int team) const {
    if (wanted_.weight) weight_gradient_.finish(sums, parts, to, thread, team);
  }
  at::Tensor wide_weight() const { return float_gradient_empty_like(stage_.weight); }

 private:
  void before_activation(View16 grad, int64_t first, int64_t images, View16 to, double* bias,
                         std::vector<float>& own) const {
    View16 output = output_.view;
    if (output.data) output.data += first * output.image;
    const ActivationRows16 rows(size_, grad, output, stage_.activation);
    for (int64_t image = 0; image < images; ++image) {
      own.assign(static_cast<size_t>(size_.channels), 0.0f);
      rows.run(image * size_.height, (image + 1) * size_.height, 0, to, wanted_.bias ? own.data() : nullptr);
      for (size_t c = 0; c < own.size(); ++c) bias[c] += own[c];
    }
  }

  PairedStage stage_;
  WantedConvGradients wanted_;
  ImageSize size_;
  Images16 output_, input_;
  PairedInputGradient input_gradient_;
  PairedWeightGradient weight_gradient_;
  Border border_;
  int64_t height_, width_;
};

// Max pooling behind the last convolution.
class PoolBackward {
 public:
  PoolBackward(const at::Tensor& grad_output, const at::Tensor& input, const Pool2dParams& params)
      : input_(bring_in16(input, {})),
        grad_(bring_in16(grad_output, {})),
        call_(pool_call(input, params, grad_output.sizes())) {}

  // The input's gradient of the images from `first` on.
  void run(int64_t first, int64_t images, const View16& to) const {
    NarrowPoolBackward part{call_, input_.view, grad_.view, to};
    part.input.data += first * part.input.image;
    part.grad.data += first * part.grad.image;
    part.run(0, images * call_.in_height);
  }

 private:
  Images16 input_, grad_;
  PoolCall call_;
};

}  // namespace cnnfast::cpu
