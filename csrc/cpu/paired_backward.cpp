#include "cpu/paired_backward.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/activation_rows16.h"
#include "cpu/conv16_job.h"
#include "cpu/memory_pool.h"
#include "cpu/paired_input_grad.h"
#include "cpu/paired_weight_grad.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/weight_sums.h"

namespace cnnfast::cpu {
namespace {

// The gradient of a group of images, which all steps read.
constexpr int64_t kGroupBytes = 256 * 1024;
// Fewer groups are no work for several threads.
constexpr int64_t kLeastGroups = 8;
// Sums of the weight's gradient that every group reads and writes; parts of the groups have sums of their
// own.
constexpr int64_t kNearSumBytes = 1 << 20, kPartsBytes = 8 << 20, kMostParts = 32;

class GroupedBackward {
 public:
  GroupedBackward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                  const at::Tensor& output, const Conv2dParams& params, Activation activation,
                  WantedConvGradients wanted)
      : size_(image_size(grad_output)),
        weight_(weight),
        wanted_(wanted),
        rows_(grad_output, output, activation),
        input_(bring_in16(input, {})),
        input_gradient_(input, weight, params, grad_output.sizes()),
        weight_gradient_(group_geometry(grad_output, weight, params), {input.size(2), input.size(3)},
                         {params.padding[0], params.padding[1]}),
        input_sizes_(input.sizes()),
        input_options_(input.options()) {
    if (wanted.input) border_ = input_gradient_.border();
    height_ = size_.height + border_.top + border_.bottom;
    width_ = size_.width + border_.left + border_.right;
    group_ = std::clamp<int64_t>(kGroupBytes / (2 * image_values()), 1, std::max<int64_t>(1, size_.images));
    groups_ = (size_.images + group_ - 1) / group_;
    parts_ = std::clamp<int64_t>(kPartsBytes / sum_bytes(), 1, std::min(kMostParts, groups_));
  }

  bool serves() const {
    return groups_ >= kLeastGroups && sum_bytes() <= kNearSumBytes &&
           (!wanted_.input || input_gradient_.covers_all());
  }

  PairedGradients run() {
    const at::Tensor result =
        wanted_.input ? gradient_empty(input_sizes_, input_options_, at::MemoryFormat::ChannelsLast)
                      : at::Tensor();
    const at::Tensor wide = float_gradient_empty_like(weight_);
    const at::Tensor sums = gradient_empty({parts_, weight_gradient_.sums()}, wide.options());
    std::vector<double> bias(static_cast<size_t>(parts_ * size_.channels), 0.0);
    if (wanted_.input) input_gradient_.pack();
    parallel_team(team_size(), [&](int thread, int team, Barrier& barrier) {
      {
        const TileUse tiles(true);
        const Images16 grad = scratch();
        const auto [begin, end] = share(parts_, 1, thread, team);
        for (int64_t part = begin; part < end; ++part)
          run_part(part, grad, result, sums.data_ptr<float>() + part * weight_gradient_.sums(),
                   bias.data() + part * size_.channels);
      }
      barrier.wait();
      if (wanted_.weight) weight_gradient_.finish(sums.data_ptr<float>(), parts_, wide, thread, team);
    });
    PairedGradients found;
    if (wanted_.input) found.input = input_gradient_.in_layout(result);
    if (wanted_.weight) found.weight = wide.to(weight_.scalar_type());
    found.bias.assign(static_cast<size_t>(size_.channels), 0.0);
    for (size_t i = 0; i < bias.size(); ++i) found.bias[i % found.bias.size()] += bias[i];
    return found;
  }

 private:
  int64_t image_values() const { return height_ * width_ * size_.channels; }
  int64_t sum_bytes() const { return weight_gradient_.sums() * static_cast<int64_t>(sizeof(float)); }

  // The calling thread's memory for the gradient of a group, with its border.
  Images16 scratch() const {
    const int64_t values = group_ * image_values(), row = width_ * size_.channels;
    auto* data = reinterpret_cast<uint16_t*>(thread_scratch(ScratchSlot::kStrip, (values + 1) / 2));
    const View16 all{data, image_values(), row, size_.channels};
    View16 inside = all;
    inside.data += border_.top * row + border_.left * size_.channels;
    zero_border(inside, size_, border_, 0, group_);
    return {all, data, data + values, {}};
  }

  void run_part(int64_t part, const Images16& grad, const at::Tensor& result, float* sums,
                double* bias) const {
    const auto [begin, end] = share(groups_, 1, static_cast<int>(part), static_cast<int>(parts_));
    View16 inside = grad.view;
    inside.data += border_.top * inside.row + border_.left * inside.pixel;
    std::vector<float> own(static_cast<size_t>(size_.channels));
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * group_, images = std::min(group_, size_.images - first);
      for (int64_t image = first; image < first + images; ++image) {
        std::fill(own.begin(), own.end(), 0.0f);
        rows_.run(image * size_.height, (image + 1) * size_.height, first, inside,
                  wanted_.bias ? own.data() : nullptr);
        for (size_t c = 0; c < own.size(); ++c) bias[c] += own[c];
      }
      if (wanted_.input) {
        View16 to = view16_of(result);
        to.data += first * to.image;
        input_gradient_.run_images(grad, images, to, 0, 1);
      }
      if (wanted_.weight) {
        View16 from = input_.view;
        from.data += first * from.image;
        weight_gradient_.add_images(from, inside, images, g == begin, sums);
      }
    }
  }

  ImageSize size_;
  const at::Tensor& weight_;
  WantedConvGradients wanted_;
  ActivationRows16 rows_;
  Images16 input_;
  PairedInputGradient input_gradient_;
  PairedWeightGradient weight_gradient_;
  at::IntArrayRef input_sizes_;
  at::TensorOptions input_options_;
  Border border_;
  int64_t height_, width_;
  int64_t group_, groups_, parts_;  // images of a group; groups; parts of them
};

}  // namespace

std::optional<PairedGradients> paired_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& weight, const at::Tensor& output,
                                               const Conv2dParams& params, Activation activation,
                                               WantedConvGradients wanted) {
  const int64_t sum_bytes = weight.numel() * static_cast<int64_t>(sizeof(float));
  if (input.size(0) < kLeastGroups || sum_bytes > kNearSumBytes) return std::nullopt;
  if (params.groups != 1 || grad_output.numel() == 0 || !pairs_serve_weight_gradient(weight) ||
      !PairedInputGradient::serves(weight, params))
    return std::nullopt;
  GroupedBackward backward(grad_output, input, weight, output, params, activation, wanted);
  if (!backward.serves()) return std::nullopt;
  return backward.run();
}

}  // namespace cnnfast::cpu
