// What lowering does differently where values are bfloat16.
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

void Lowering::emit_conv16(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left) {
  const Node& n = graph_.nodes[node];
  if (gains_by_blocks(node) && !prologue_[n.inputs[0]]) return emit_widened_pixels(node);
  const Place from = place(read_by(node));
  std::optional<Place> residual;
  if (n.inputs.size() == 2) residual = place(n.inputs[1]);
  const Place* added = residual ? &*residual : nullptr;
  if (takes_pairs_here(node)) {
    const bool is_short = cpu::takes_short_pairs(g) && !cpu::takes_depthwise_pairs(g);
    auto pairs = constants_.conv_constants(node, g, is_short ? WeightForm::kShortPairs : WeightForm::kPairs);
    return add_step(
        cpu::takes_depthwise_pairs(g)
            ? depthwise16_step(node, g, pad_top, pad_left, std::move(pairs), from, place(node), added)
            : pair_conv_step(node, g, pad_top, pad_left, std::move(pairs), from, place(node), added,
                             prologue_of(node)));
  }
  const bool fixed = g.algorithm.fixed;
  const auto step = fixed ? fixed_conv_step : widened_conv_step;
  add_step(step(node, g, pad_top, pad_left,
                constants_.conv_constants(node, g, fixed ? WeightForm::kFloat : WeightForm::kRounded), from,
                place(node), added, prologue_of(node), std::nullopt));
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
