// Gradients of inception, branch by branch from its last stage to its first.
#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "ops/conv2d.h"
#include "ops/inception.h"

namespace cnnfast {
namespace {

using MaxPoolBackward = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                                   at::IntArrayRef, at::IntArrayRef, bool);
using AvgPoolBackward = at::Tensor(const at::Tensor&, const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                                   at::IntArrayRef, bool, bool, std::optional<int64_t>);

template <class Signature>
auto typed_backward(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

at::Tensor pool_gradient(const Stage& stage, const at::Tensor& grad, const at::Tensor& input) {
  static auto max = typed_backward<MaxPoolBackward>("cnnfast::max_pool2d_backward");
  static auto avg = typed_backward<AvgPoolBackward>("cnnfast::avg_pool2d_backward");
  const Pool2dParams p = stage.pool_params();
  if (stage.kind == StageKind::kMaxPool)
    return max.call(grad, input, p.kernel_size, p.stride, p.padding, p.dilation, false);
  return avg.call(grad, input, p.kernel_size, p.stride, p.padding, false, stage.option != 0, std::nullopt);
}

class Backward {
 public:
  Backward(ChainBackward chain, const at::Tensor& input, at::TensorList weights, const c10::List<bool>& mask)
      : chain_(chain),
        input_(input),
        weights_(weights),
        mask_(mask),
        grad_weights_(weights.size()),
        grad_biases_(weights.size()) {
    TORCH_CHECK(mask.size() == 1 + 2 * weights.size(), "cnnfast::inception_backward: output_mask has ",
                mask.size(), " entries, but there are ", weights.size(), " weights");
  }

  // Returns whether a gradient further up (the block's input or an earlier stage) is wanted from stage s.
  bool wanted_above(const Branch& branch, size_t s) const {
    bool any = mask_.get(0);
    for (size_t i = 0; i < s && !any; ++i)
      if (branch[i].conv >= 0) any = wants_weight(branch[i]) || wants_bias(branch[i]);
    return any;
  }

  // `values`: the block's input and every stage's output. `grad` belongs to the last of them.
  void run(const Branch& branch, const std::vector<at::Tensor>& values, at::Tensor grad) {
    for (size_t s = branch.size(); s > 0;) {
      s -= run_last(branch, values, s, grad);
      if (!wanted_above(branch, s)) return;
    }
    if (mask_.get(0)) accumulate(grad, !branch.empty());
  }

  InceptionGradients result() {
    for (auto* list : {&grad_weights_, &grad_biases_})
      for (auto& gradient : *list)
        if (!gradient.defined()) gradient = no_gradient(input_);
    return {mask_.get(0) ? grad_input_ : no_gradient(input_), std::move(grad_weights_),
            std::move(grad_biases_)};
  }

 private:
  // Takes the gradient of what the first `end` stages give for that of what the last of them, as many as it
  // says, are given.
  size_t run_last(const Branch& branch, const std::vector<at::Tensor>& values, size_t end, at::Tensor& grad) {
    const std::vector<StageValues> chain = last_chain(branch, values, end);
    const std::vector<ConvGradients> found = chain_(grad, chain);
    if (found.empty()) {
      const StageValues& last = chain.back();
      grad = last.stage.conv < 0 ? pool_gradient(last, grad) : conv_gradient(last, grad);
      return 1;
    }
    for (size_t i = 0; i < found.size(); ++i) {
      const Stage& stage = branch[end - found.size() + i];
      if (stage.conv < 0) continue;
      grad_weights_[stage.conv] = found[i].weight;
      grad_biases_[stage.conv] = found[i].bias;
    }
    grad = found.front().input;
    return found.size();
  }
  // As far as gradients are wanted.
  std::vector<StageValues> last_chain(const Branch& branch, const std::vector<at::Tensor>& values,
                                      size_t end) const {
    std::vector<StageValues> chain;
    for (size_t s = end; s-- > 0 && (chain.empty() || branch[s].conv >= 0);) {
      const Stage& stage = branch[s];
      const bool conv = stage.conv >= 0, above = wanted_above(branch, s);
      chain.insert(chain.begin(), {stage,
                                   values[s],
                                   conv ? weights_[stage.conv] : at::Tensor(),
                                   values[s + 1],
                                   {above, conv && wants_weight(stage), conv && wants_bias(stage)}});
      if (!above) break;
    }
    return chain;
  }
  at::Tensor pool_gradient(const StageValues& pool, const at::Tensor& grad) {
    if (!pool.wanted.input) return {};
    return cnnfast::pool_gradient(pool.stage, activation_backward(grad, pool.output, pool.stage.activation),
                                  pool.input);
  }
  // Of a convolution and its activation: keeps those of weight and bias, gives that of the input.
  at::Tensor conv_gradient(const StageValues& conv, const at::Tensor& grad) {
    static auto op = typed_backward<decltype(conv2d_backward)>("cnnfast::conv2d_backward");
    const Stage& stage = conv.stage;
    const Conv2dParams p = stage.conv_params();
    const auto [need_input, need_weight, need_bias] = conv.wanted;
    const auto found = op.call(grad, conv.input, conv.weight, std::nullopt, conv.output, p.stride, p.padding,
                               p.dilation, p.groups, plain_activation_name(stage.activation.kind),
                               {need_input, need_weight, need_bias, false, false});
    if (need_weight) grad_weights_[stage.conv] = std::get<1>(found);
    if (need_bias) grad_biases_[stage.conv] = std::get<2>(found);
    return std::get<0>(found);
  }
  bool wants_weight(const Stage& stage) const { return mask_.get(1 + stage.conv); }
  bool wants_bias(const Stage& stage) const { return mask_.get(1 + weights_.size() + stage.conv); }

  // The first gradient is kept where it is memory of its own in the result's layout.
  void accumulate(const at::Tensor& grad, bool own) {
    if (grad_input_.defined())
      grad_input_.add_(grad);
    else
      grad_input_ =
          own && grad.is_contiguous(at::MemoryFormat::ChannelsLast) ? grad : fresh_channels_last(grad);
  }

  ChainBackward chain_;
  const at::Tensor& input_;
  at::TensorList weights_;
  const c10::List<bool>& mask_;
  at::Tensor grad_input_;
  std::vector<at::Tensor> grad_weights_, grad_biases_;
};

int64_t branch_channels(const Branch& branch, const at::Tensor& input, at::TensorList weights) {
  int64_t channels = input.size(1);
  for (const auto& stage : branch)
    if (stage.conv >= 0) channels = weights[stage.conv].size(0);
  return channels;
}

}  // namespace

InceptionGradients inception_backward_by(ChainBackward run, const at::Tensor& grad_output,
                                         const at::Tensor& input, at::TensorList weights,
                                         at::TensorList outputs, at::IntArrayRef list,
                                         const c10::List<bool>& output_mask) {
  const auto branches = parse_branches("inception_backward", list);
  Backward backward(run, input, weights, output_mask);
  int64_t channel = 0;
  size_t kept = 1;  // outputs[0] is the concatenation
  for (const auto& branch : branches) {
    const int64_t channels = branch_channels(branch, input, weights);
    std::vector<at::Tensor> values{input};
    for (size_t s = 0; s + 1 < branch.size(); ++s) values.push_back(outputs[kept++]);
    values.push_back(outputs[0].narrow(1, channel, channels));
    backward.run(branch, values, grad_output.narrow(1, channel, channels));
    channel += channels;
  }
  return backward.result();
}

InceptionGradients inception_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      at::TensorList weights, at::TensorList outputs, at::IntArrayRef list,
                                      const c10::List<bool>& output_mask) {
  const ChainBackward one_by_one = [](const at::Tensor&, const std::vector<StageValues>&) {
    return std::vector<ConvGradients>();
  };
  return inception_backward_by(one_by_one, grad_output, input, weights, outputs, list, output_mask);
}

}  // namespace cnnfast
