// 1x1 convolutions of the same value, as the branches of an Inception block begin: computed together, block
// of pixels by block of pixels, each into its own place.
#include <algorithm>
#include <map>
#include <sstream>

#include "cpu/parallel.h"
#include "plan/lowering.h"

namespace cnnfast::plan {
namespace {

// Smaller inputs stay in the second-level cache from one convolution to the next.
constexpr int64_t kFarFloats = 1 << 17;
// Of the second-level cache, for the pixels of a block.
constexpr int64_t kBlockFloats = 48 * 1024;
constexpr int64_t kBlockGrain = 48;  // pixels: whole register blocks of every panel width

class Siblings : public Step {
 public:
  Siblings(int64_t node, Place from, std::vector<Sibling> siblings)
      : Step(node, {std::move(from)}, siblings[0].to) {
    for (Sibling& s : siblings) {
      if (&s != &siblings[0]) also_writes_.push_back(s.to);
      jobs_.emplace_back(s.geometry, reads_[0].strides(), s.to.strides(), cpu::View{});
      constants_.push_back(std::move(s.constants));
    }
    const cpu::ConvGeometry& g = jobs_[0].geometry();
    pixels_ = g.images * g.out_height * g.out_width;
    const int64_t fitting = std::clamp<int64_t>(kBlockFloats / g.in_channels, kBlockGrain, 4096);
    block_ = (fitting + kBlockGrain - 1) / kBlockGrain * kBlockGrain;
  }

  double flops() const override {
    double sum = 0;
    for (const cpu::ConvJob& job : jobs_) sum += job.geometry().flops();
    return sum;
  }
  std::string text() const override {
    std::ostringstream out;
    out << jobs_.size() << " siblings: " << conv_text(jobs_[0].geometry()) << " to "
        << size_text(writes_.size);
    for (const Place& place : also_writes_) out << " and " << size_text(place.size);
    return out.str();
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const float* from = reads_[0].view(memory).data;
    if (std::any_of(jobs_.begin(), jobs_.end(), [&](const auto& job) { return job.split_by_channels(team); }))
      return compute_apart(memory, from, thread, team);
    const auto [begin, end] = cpu::share(pixels_, kBlockGrain, thread, team);
    for (int64_t pixel = begin; pixel < end; pixel += block_)
      for (size_t i = 0; i < jobs_.size(); ++i)
        jobs_[i].run_pixels(packed(i), from, to(i, memory), pixel, std::min(pixel + block_, end), i == 0);
  }

 private:
  // Where weights outweigh the pixels.
  void compute_apart(const Memory& memory, const float* from, int thread, int team) const {
    for (size_t i = 0; i < jobs_.size(); ++i)
      jobs_[i].run_at(packed(i), from, to(i, memory), nullptr, thread, team);
  }
  cpu::PackedConv packed(size_t i) const {
    static const cpu::AlignedFloats none(0);
    return {constants_[i]->weight.data(), none, constants_[i]->shift};
  }
  float* to(size_t i, const Memory& memory) const {
    return (i == 0 ? writes_ : also_writes_[i - 1]).view(memory).data;
  }

  std::vector<cpu::ConvJob> jobs_;
  std::vector<std::shared_ptr<const ConvConstants>> constants_;
  int64_t pixels_, block_;
};

}  // namespace

std::unique_ptr<Step> sibling_step(int64_t node, Place from, std::vector<Sibling> siblings) {
  return std::make_unique<Siblings>(node, std::move(from), std::move(siblings));
}

// A direct 1x1 convolution of stride 1 and one group.
bool Lowering::is_plain_1x1(int64_t node) const {
  const Node& n = graph_.nodes[node];
  if (n.op != Op::kConv2d) return false;
  using A = Conv2dAttr;
  const cpu::ConvGeometry g = conv_geometry(node);
  const auto& a = n.attr;
  const bool padded = a[A::kPadTop] || a[A::kPadLeft] || a[A::kPadBottom] || a[A::kPadRight];
  return g.algorithm.direct() && g.groups == 1 && g.kernel_h == 1 && g.kernel_w == 1 && g.stride_h == 1 &&
         g.stride_w == 1 && !padded;
}

// The same without a residual, where blocks of pixels should be used while they are in cache: if the input
// leaves the second-level cache, or has to be widened.
bool Lowering::gains_by_blocks(int64_t node) const {
  if (graph_.nodes[node].inputs.size() != 1 || !is_plain_1x1(node)) return false;
  if (graph_.half()) return !takes_pairs_here(node);
  const cpu::ConvGeometry g = conv_geometry(node);
  return g.images * g.out_height * g.out_width * g.in_channels > kFarFloats;
}

bool Lowering::may_be_sibling(int64_t node) const {
  return gains_by_blocks(node) && pooled_by_[node] < 0 && !prologue_[graph_.nodes[node].inputs[0]];
}

void Lowering::find_siblings() {
  std::map<int64_t, std::vector<int64_t>> by_input;
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node)
    if (may_be_sibling(node)) by_input[graph_.nodes[node].inputs[0]].push_back(node);
  for (auto& [input, nodes] : by_input) {
    if (nodes.size() < 2) continue;
    for (size_t i = 1; i < nodes.size(); ++i) joined_[nodes[i]] = true;
    siblings_[nodes[0]] = std::move(nodes);
  }
}

// Those computed with a node, or the node alone.
std::vector<Sibling> Lowering::siblings_of(int64_t node, WeightForm form) const {
  const std::vector<int64_t> alone{node}, &nodes = siblings_[node].empty() ? alone : siblings_[node];
  std::vector<Sibling> siblings;
  for (const int64_t sibling : nodes) {
    const cpu::ConvGeometry g = conv_geometry(sibling);
    siblings.push_back({g, constants_.conv_constants(sibling, g, form), place(sibling)});
  }
  return siblings;
}

void Lowering::emit_siblings(int64_t node) {
  if (graph_.half()) return emit_widened_pixels(node);
  add(sibling_step(node, place(graph_.nodes[node].inputs[0]), siblings_of(node, WeightForm::kFloat)));
}

}  // namespace cnnfast::plan
