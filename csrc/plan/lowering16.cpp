// What lowering does differently where values are bfloat16.
#include <algorithm>

#include "cpu/bf16_table.h"
#include "cpu/depthwise16_pack.h"
#include "cpu/short_pairs.h"
#include "plan/lowering.h"
#include "plan/steps16.h"

namespace cnnfast::plan {

bool Lowering::takes_pairs_here(int64_t node) const { return pairs_[node]; }

// What is gathered pixel by pixel can be normalised on the way, where no padding lies among it.
bool Lowering::takes_prologue16(int64_t node) const { return !takes_pairs_here(node) || is_plain_1x1(node); }

// Without a norm on the way in, whose results would be no bfloat16 values.
bool Lowering::is_max_pool_as_stored(int64_t node) const {
  return graph_.nodes[node].op == Op::kMaxPool2d && !prologue_[graph_.nodes[node].inputs[0]];
}

std::shared_ptr<const ConvConstants> Lowering::pair_constants(int64_t node, const cpu::ConvGeometry& g) {
  const bool is_short = cpu::takes_short_pairs(g) && !cpu::takes_depthwise_pairs(g);
  return constants_.conv_constants(node, g, is_short ? WeightForm::kShortPairs : WeightForm::kPairs);
}

void Lowering::emit_conv16(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left) {
  const Node& n = graph_.nodes[node];
  if (gains_by_blocks(node) && !prologue_[n.inputs[0]]) return emit_widened_pixels(node);
  const Place from = place(read_by(node));
  std::optional<Place> residual;
  if (n.inputs.size() == 2) residual = place(n.inputs[1]);
  const Place* added = residual ? &*residual : nullptr;
  if (takes_pairs_here(node)) {
    const int64_t shuffle = shuffled_by_[node];
    const Place to = place(shuffle < 0 ? node : shuffle);
    std::optional<Place> partner;
    if (shuffle >= 0) partner = place(graph_.nodes[graph_.nodes[shuffle].inputs[0]].inputs[0]);
    auto pairs = pair_constants(node, g);
    return add_step(
        cpu::takes_depthwise_pairs(g)
            ? depthwise16_step(node, g, pad_top, pad_left, std::move(pairs), from, place(node), added)
            : pair_conv_step(node, g, pad_top, pad_left, std::move(pairs), from, to,
                             {partner ? partner : residual, prologue_of(node), std::nullopt, !!partner}));
  }
  const bool fixed = g.algorithm.fixed;
  const auto step = fixed ? fixed_conv_step : widened_conv_step;
  add_step(step(node, g, pad_top, pad_left,
                constants_.conv_constants(node, g, fixed ? WeightForm::kFloat : WeightForm::kRounded), from,
                place(node), added, prologue_of(node), std::nullopt));
}

// A shuffle of two images' channels, of which a convolution makes the second one and writes both in turn.
void Lowering::find_shuffles() {
  if (!graph_.half() || !cpu::bf16_kernels().interleaves) return;
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    const int64_t both = graph_.nodes[node].op == Op::kConv2d ? reader[node] : -1;
    if (both < 0 || !gathered_[both]) continue;
    const auto conv = static_cast<int64_t>(node);
    const std::vector<int64_t>& parts = graph_.nodes[both].inputs;
    if (parts.size() != 2 || parts[1] != conv || parts[0] >= conv || graph_.nodes[conv].inputs.size() != 1)
      continue;
    const cpu::ConvGeometry g = conv_geometry(conv);
    const bool plain = takes_pairs_here(conv) && g.groups == 1 && zones_[conv].empty() &&
                       !cpu::takes_short_pairs(g) && pooled_by_[conv] < 0;
    if (plain) shuffled_by_[conv] = reader[both];
  }
}

bool Lowering::is_written_by_conv(int64_t shuffle) const {
  return std::count(shuffled_by_.begin(), shuffled_by_.end(), shuffle) > 0;
}

// activation: of the product on the way in.
void Lowering::emit_scale_conv16(int64_t node, const cpu::ConvGeometry& g, const Activation& activation,
                                 const Place& from, const Place& factors) {
  const Node& n = graph_.nodes[node];
  std::optional<Place> residual;
  if (n.inputs.size() == 2) residual = place(n.inputs[1]);
  auto pairs = pair_constants(node, g);
  cpu::Prologue prologue{};
  prologue.activation = activation;
  add_step(pair_conv_step(node, g, 0, 0, std::move(pairs), from, place(node), {residual, prologue, factors}));
}

void Lowering::emit_widened_pixels(int64_t node) {
  const int64_t input = graph_.nodes[node].inputs[0];
  std::optional<cpu::PoolCall> pool;
  if (projected_[input]) pool = pool_of(input);
  add_step(widened_pixels_step(node, place(pool ? read_by(input) : input), std::move(pool),
                               siblings_of(node, WeightForm::kRounded)));
}

void Lowering::emit_conv_pool16(int64_t conv, int64_t pool, const std::optional<LrnParams>& norm) {
  const cpu::ConvGeometry g = conv_geometry(conv);
  const Node& n = graph_.nodes[conv];
  const bool max = graph_.nodes[pool].op == Op::kMaxPool2d;
  const bool fixed = g.algorithm.fixed;
  const auto step = fixed ? fixed_conv_step : widened_conv_step;
  add_step(step(conv, g, n.attr[Conv2dAttr::kPadTop], n.attr[Conv2dAttr::kPadLeft],
                constants_.conv_constants(conv, g, fixed ? WeightForm::kFloat : WeightForm::kRounded),
                place(n.inputs[0]), place(pool), nullptr, {},
                PoolBehind{strips_[conv], norm, max, pool_of(pool)}));
}

// Steps that do not know bfloat16 run on widened strips.
void Lowering::add(std::unique_ptr<Step> step) {
  if (!graph_.half()) return add_step(std::move(step));
  auto* rows = dynamic_cast<RowStep*>(step.get());
  TORCH_INTERNAL_ASSERT(rows, "cnnfast: ", step->text(), " has no bfloat16 form");
  step.release();
  add_step(widened_step(std::unique_ptr<RowStep>(rows)));
}

}  // namespace cnnfast::plan
