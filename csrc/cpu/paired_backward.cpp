#include "cpu/paired_backward.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <memory>

#include "cpu/conv16_job.h"
#include "cpu/memory_pool.h"
#include "cpu/paired_groups.h"
#include "cpu/paired_stages.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

// Sums of the weights' gradients that every group reads and writes; parts of the groups have sums of their
// own.
constexpr int64_t kNearSumBytes = 1 << 20, kPartsBytes = 8 << 20, kMostParts = 32;

// Output channels of one vector: with more of them Winograd's algorithm serves as well.
constexpr int64_t kJoinedOutputs = 16;

// Convolutions one behind the other, and the pooling behind them, from the last to the first, group by group.
class GroupedBackward {
 public:
  GroupedBackward(const at::Tensor& grad_output, const std::vector<PairedStage>& chain,
                  const std::optional<Pool2dParams>& pool)
      : input_(chain.front().input), images_(grad_output.size(0)) {
    if (pool)
      pool_.emplace(grad_output, chain.back().output, *pool);
    else
      grad_ = bring_in16(grad_output, {});
    int64_t largest = 1, sums = 0;
    for (const PairedStage& stage : chain) {
      stages_.push_back(std::make_unique<StageBackward>(stage));
      largest = std::max(largest, stages_.back()->image_values());
      sums += stages_.back()->sums();
    }
    sum_bytes_ = sums * static_cast<int64_t>(sizeof(float));
    need_input_ = chain.front().wanted.input;
    group_ = images_of_group(images_, 2 * largest);
    groups_ = (images_ + group_ - 1) / group_;
    parts_ = std::clamp<int64_t>(kPartsBytes / sum_bytes_, 1, std::min(kMostParts, groups_));
    lay_out();
  }

  bool serves() const {
    return groups_ >= kLeastGroups && sum_bytes_ <= kNearSumBytes &&
           std::all_of(stages_.begin(), stages_.end(), [](const auto& stage) { return stage->serves(); });
  }

  std::vector<PairedGradients> run() {
    const at::Tensor result =
        need_input_ ? gradient_empty(input_.sizes(), input_.options(), at::MemoryFormat::ChannelsLast)
                    : at::Tensor();
    std::vector<Sums> sums;
    for (auto& stage : stages_) {
      const at::Tensor wide = stage->wide_weight();
      sums.push_back({wide, gradient_empty({parts_, stage->sums()}, wide.options()),
                      std::vector<double>(static_cast<size_t>(parts_ * stage->size().channels), 0.0)});
    }
    for (size_t s = need_input_ ? 0 : 1; s < stages_.size(); ++s) stages_[s]->input_gradient().pack();
    parallel_team(team_size(), [&](int thread, int team, Barrier& barrier) {
      {
        const TileUse tiles(true);
        const Memory memory = scratch();
        const auto [begin, end] = share(parts_, 1, thread, team);
        for (int64_t part = begin; part < end; ++part) run_part(part, memory, result, sums);
      }
      barrier.wait();
      for (size_t s = 0; s < stages_.size(); ++s)
        stages_[s]->finish(sums[s].parts.data_ptr<float>(), parts_, sums[s].wide, thread, team);
    });
    std::vector<PairedGradients> found;
    for (size_t s = 0; s < stages_.size(); ++s)
      found.push_back(stages_[s]->found(sums[s].bias, sums[s].wide));
    if (need_input_) found[0].input = stages_[0]->input_gradient().in_layout(result);
    return found;
  }

 private:
  // Of one convolution, part by part.
  struct Sums {
    at::Tensor wide, parts;
    std::vector<double> bias;
  };

  // Where in a thread's memory the gradient of every output lies, in values. Of convolutions without a border
  // it is made where the one behind wrote it, in one of two places by turns; zeros around others are written
  // once.
  void lay_out() {
    int64_t turn[2] = {0, 0};
    for (size_t s = 0; s < stages_.size(); ++s)
      turn[s % 2] = std::max(turn[s % 2], group_ * whole_lines(values_without_border(s)));
    values_ = turn[0] + turn[1];
    for (size_t s = 0; s < stages_.size(); ++s) {
      handed_.push_back(s % 2 ? turn[0] : 0);
      grad_at_.push_back(stages_[s]->bordered() ? values_ : handed_.back());
      if (stages_[s]->bordered()) values_ += group_ * whole_lines(stages_[s]->image_values());
    }
  }
  static int64_t whole_lines(int64_t values) { return round_up(values, 32); }
  int64_t values_without_border(size_t s) const {
    const ImageSize& size = stages_[s]->size();
    return size.height * size.width * size.channels;
  }

  // A thread's memory for the gradients of a group.
  struct Memory {
    std::vector<Images16> grads;
    std::vector<View16> handed;  // what a stage gets from the one behind it: pixels side by side
  };
  Memory scratch() const {
    auto* data = reinterpret_cast<uint16_t*>(thread_scratch(ScratchSlot::kStrip, (values_ + 1) / 2));
    Memory memory;
    for (size_t s = 0; s < stages_.size(); ++s) {
      memory.grads.push_back(stages_[s]->in(data + grad_at_[s], group_));
      stages_[s]->clear_border(memory.grads.back(), group_);
      const ImageSize& size = stages_[s]->size();
      const int64_t row = size.width * size.channels;
      memory.handed.push_back({data + handed_[s], size.height * row, row, size.channels});
    }
    return memory;
  }

  void run_part(int64_t part, const Memory& memory, const at::Tensor& result, std::vector<Sums>& sums) const {
    const auto [begin, end] = share(groups_, 1, static_cast<int>(part), static_cast<int>(parts_));
    std::vector<float> own;
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * group_, images = std::min(group_, images_ - first);
      View16 grad = pool_ ? memory.handed.back() : grad_.view;
      if (pool_)
        pool_->run(first, images, grad);
      else
        grad.data += first * grad.image;
      for (size_t s = stages_.size(); s-- > 0;) {
        View16 to{};
        if (s > 0) to = memory.handed[s - 1];
        if (s == 0 && need_input_) {
          to = view16_of(result);
          to.data += first * to.image;
        }
        stages_[s]->run(grad, first, images, memory.grads[s], to, g == begin,
                        sums[s].parts.data_ptr<float>() + part * stages_[s]->sums(),
                        sums[s].bias.data() + part * stages_[s]->size().channels, own);
        grad = to;
      }
    }
  }

  Images16 grad_;  // without pooling
  std::optional<PoolBackward> pool_;
  at::Tensor input_;
  int64_t images_;
  std::vector<std::unique_ptr<StageBackward>> stages_;  // they refer to themselves
  bool need_input_;
  int64_t sum_bytes_;
  int64_t group_, groups_, parts_;  // images of a group; groups; parts of them
  std::vector<int64_t> handed_, grad_at_;
  int64_t values_;
};

int64_t sum_bytes(const PairedStage& stage) {
  return stage.weight.numel() * static_cast<int64_t>(sizeof(float));
}

bool joins(const PairedStage& stage) {
  return stage.input.size(0) >= kLeastGroups && sum_bytes(stage) <= kNearSumBytes &&
         stage.params.groups == 1 && stage.output.numel() > 0 && pairs_serve_weight_gradient(stage.weight) &&
         PairedInputGradient::serves(stage.weight, stage.params);
}

}  // namespace

std::optional<PairedGradients> paired_backward(const at::Tensor& grad_output, const PairedStage& stage) {
  if (!joins(stage)) return std::nullopt;
  GroupedBackward backward(grad_output, {stage}, std::nullopt);
  if (!backward.serves()) return std::nullopt;
  return std::move(backward.run().front());
}

std::optional<PairedGradients> joined_backward(const at::Tensor& grad_output, const PairedStage& stage) {
  if (!bf16_kernels().multiplies || !stage.wanted.input || stage.weight.size(0) > kJoinedOutputs ||
      !PairedInputGradient::joins(stage.weight, stage.params, stage.input.size(3)))
    return std::nullopt;
  return paired_backward(grad_output, stage);
}

std::vector<PairedGradients> paired_chain_backward(const at::Tensor& grad_output,
                                                   const std::vector<PairedStage>& chain,
                                                   const std::optional<Pool2dParams>& pool) {
  size_t begin = chain.size();
  for (int64_t bytes = 0; begin > 0 && joins(chain[begin - 1]); --begin) {
    bytes += sum_bytes(chain[begin - 1]);
    if (bytes > kNearSumBytes) break;
  }
  const size_t convs = chain.size() - begin;
  if (convs == 0 || convs + pool.has_value() < 2) return {};
  GroupedBackward backward(grad_output, {chain.begin() + static_cast<int64_t>(begin), chain.end()}, pool);
  if (!backward.serves()) return {};
  return backward.run();
}

}  // namespace cnnfast::cpu
