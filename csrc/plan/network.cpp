#include "plan/network.h"

#include <algorithm>
#include <unordered_map>

#include "cpu/bf16.h"
#include "cpu/conv16_job.h"
#include "cpu/depthwise16_pack.h"
#include "cpu/short_pairs.h"

namespace cnnfast::plan {
namespace {

constexpr size_t kPrograms = 16;

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

// A tensor as it was at a certain moment.
class Snapshot {
 public:
  explicit Snapshot(const at::Tensor& t)
      : tensor_(t.getIntrusivePtr()),
        key_(t.unsafeGetTensorImpl()),
        data_(t.const_data_ptr()),
        version_(version(t)) {}
  bool alive() const { return !tensor_.expired(); }
  bool is(const at::Tensor& t) const {
    return key_ == t.unsafeGetTensorImpl() && data_ == t.const_data_ptr() && version_ == version(t) &&
           alive();
  }

 private:
  // Inference tensors have no version: a network loaded in inference mode is taken as constant.
  static uint32_t version(const at::Tensor& t) { return t.is_inference() ? 0 : t._version(); }

  WeakTensor tensor_;
  const c10::TensorImpl* key_;
  const void* data_;
  uint32_t version_;
};

struct Entry {
  Snapshot weights, plan;
  std::shared_ptr<Network> network;
};

std::mutex mutex;
// Never destroyed: tensors held by Python may outlive this library's static objects.
auto& entries = *new std::unordered_map<const c10::TensorImpl*, Entry>;

// Output channel, input channel, row, column; a linear layer's features over flattened images come in that
// order too.
cpu::WeightStrides weight_strides(const cpu::ConvGeometry& g) {
  const int64_t kernel = g.kernel_h * g.kernel_w;
  return {g.group_in() * kernel, kernel, g.kernel_w, 1};
}

std::vector<float> rounded_to_bf16(const float* values, int64_t count) {
  std::vector<float> rounded(static_cast<size_t>(count));
  std::transform(values, values + count, rounded.begin(),
                 [](float x) { return cpu::from_bf16(cpu::to_bf16(x)); });
  return rounded;
}

}  // namespace

Network::Network(at::Tensor weights, const at::Tensor& plan)
    : weights_(weights.alias()), graph_(parse(weights, plan)) {}

std::shared_ptr<Program> Network::program(const std::vector<at::Tensor>& inputs) {
  Key key;
  for (const auto& input : inputs) key.push_back(input.sizes().vec());
  std::lock_guard lock(mutex_);
  for (auto it = programs_.begin(); it != programs_.end(); ++it)
    if (it->first == key) {
      programs_.splice(programs_.begin(), programs_, it);
      return it->second;
    }
  auto program = std::make_shared<Program>(graph_, key, *this);
  programs_.emplace_front(std::move(key), program);
  if (programs_.size() > kPrograms) programs_.pop_back();
  return program;
}

std::shared_ptr<const ConvConstants> Network::conv_constants(int64_t id, const cpu::ConvGeometry& g,
                                                             WeightForm form) {
  const std::vector<int64_t> key{id,
                                 g.in_channels,
                                 g.kernel_h,
                                 g.kernel_w,
                                 g.algorithm.points,
                                 g.algorithm.tile,
                                 g.algorithm.fixed,
                                 static_cast<int64_t>(form)};
  auto& packed = constants_[key];
  if (packed) return packed;
  const Node& node = graph_.nodes[id];
  const int64_t bias = node.attr[node.op == Op::kConv2d ? static_cast<int64_t>(Conv2dAttr::kBias) : 3];
  auto fresh = std::make_shared<ConvConstants>();
  const float *weight = constant(node.attr[0]), *shift = bias < 0 ? nullptr : constant(bias);
  if (form == WeightForm::kPairs && cpu::takes_depthwise_pairs(g)) {
    fresh->weight = cpu::pack_depthwise_pairs(g, weight, weight_strides(g));
    fresh->shift = cpu::pack_depthwise_shift(g, shift);
  } else if (form == WeightForm::kPairs || form == WeightForm::kShortPairs) {
    fresh->weight = cpu::pack_pairs(g, weight, weight_strides(g));
    if (form == WeightForm::kShortPairs) {
      fresh->weight = cpu::shorten_pairs(g, fresh->weight);
      fresh->short_pairs = true;
    }
    fresh->shift = cpu::pack_panels(g, shift);
  } else {
    const std::vector<float> rounded = form == WeightForm::kRounded
                                           ? rounded_to_bf16(weight, g.out_channels * g.depth())
                                           : std::vector<float>();
    fresh->weight = cpu::pack_weight(g, rounded.empty() ? weight : rounded.data(), weight_strides(g));
    fresh->shift = cpu::pack_channels(g, shift);
  }
  packed = std::move(fresh);
  return packed;
}

std::shared_ptr<const ConvConstants> Network::window_constants(int64_t id, const cpu::ConvGeometry& g,
                                                               int64_t row, int64_t column, WeightForm form) {
  using A = Conv2dAttr;
  auto& packed = constants_[{id, g.kernel_h, g.kernel_w, row, column, static_cast<int64_t>(form)}];
  if (packed) return packed;
  const auto& a = graph_.nodes[id].attr;
  const int64_t width = a[A::kKernelW], kernel = a[A::kKernelH] * width;
  const float* const weight = constant(a[A::kWeight]) + row * width + column;
  const float* const shift = a[A::kBias] < 0 ? nullptr : constant(a[A::kBias]);
  const cpu::WeightStrides strides{g.group_in() * kernel, kernel, width, 1};
  const bool pairs = form == WeightForm::kPairs;
  auto fresh = std::make_shared<ConvConstants>();
  fresh->weight = pairs ? cpu::pack_pairs(g, weight, strides) : cpu::pack_weight(g, weight, strides);
  fresh->shift = pairs ? cpu::pack_panels(g, shift) : cpu::pack_channels(g, shift);
  packed = std::move(fresh);
  return packed;
}

const float* Network::constant(int64_t offset) const { return weights_.const_data_ptr<float>() + offset; }

std::shared_ptr<Network> find_network(const at::Tensor& weights, const at::Tensor& plan) {
  std::lock_guard lock(mutex);
  const auto it = entries.find(plan.unsafeGetTensorImpl());
  if (it != entries.end() && it->second.plan.is(plan) && it->second.weights.is(weights))
    return it->second.network;
  auto network = std::make_shared<Network>(weights, plan);
  for (auto e = entries.begin(); e != entries.end();)
    e = e->second.plan.alive() && e->second.weights.alive() ? std::next(e) : entries.erase(e);
  entries.insert_or_assign(plan.unsafeGetTensorImpl(), Entry{Snapshot(weights), Snapshot(plan), network});
  return network;
}

void clear_networks() {
  std::lock_guard lock(mutex);
  entries.clear();
}

}  // namespace cnnfast::plan
