#include "plan/lowering.h"

#include <algorithm>

#include "plan/steps16.h"
#include "plan/tuning.h"

namespace cnnfast::plan {

using cpu::Border;
using cpu::ImageSize;

namespace {

// What may be read again for every strip of a convolution with pooling.
constexpr int64_t kStripWeightBytes = 5 << 19;
// Strips of whole numbers' products that overlap by more than this cost more than pooling apart.
constexpr double kMostRepeated = 1.1;
// More work than this is worth a second thread.
constexpr double kSharedFlops = 1e6;

// Cheap enough to be computed wherever a value is read.
bool is_short(const Activation& a) { return a.kind <= Activation::kLeakyReLU; }

}  // namespace

Lowering::Lowering(const Graph& graph, const std::vector<Value>& values, ConstantStore& constants,
                   Program& program)
    : graph_(graph),
      values_(values),
      constants_(constants),
      program_(program),
      algorithm_(graph.nodes.size()),
      zones_(graph.nodes.size()),
      pairs_(graph.nodes.size(), false),
      prologue_(graph.nodes.size(), false),
      projected_(graph.nodes.size(), false),
      scaled_(graph.nodes.size(), false),
      expanded_by_(graph.nodes.size(), -1),
      sums_of_(graph.nodes.size(), -1),
      siblings_(graph.nodes.size()),
      joined_(graph.nodes.size(), false),
      gathered_(graph.nodes.size(), false),
      pooled_by_(graph.nodes.size(), -1),
      strips_(graph.nodes.size()),
      shuffled_by_(graph.nodes.size(), -1),
      buffer_of_(graph.nodes.size(), -1),
      channel_of_(graph.nodes.size(), 0) {}

void Lowering::run() {
  choose_algorithms();
  find_prologues();
  find_conv_pools();
  find_gathers();
  find_shuffles();
  find_siblings();
  find_pool_convs();
  find_scale_convs();
  if (!graph_.half()) {
    find_expansions();
    find_inverted_residuals();
    find_expansion_means();
  }
  place_outputs();
  place_concats();
  place_rest();
  demand_borders();
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) emit(node);
  emit_outputs();
  finish();
}

// The node in whose memory a value lies: another one for views.
int64_t Lowering::source_of(int64_t node) const {
  while (is_view(graph_.nodes[node].op)) node = graph_.nodes[node].inputs[0];
  return node;
}

// Whether a value is part of its source's channels.
bool Lowering::takes_slice(int64_t node) const {
  for (; is_view(graph_.nodes[node].op); node = graph_.nodes[node].inputs[0])
    if (graph_.nodes[node].op == Op::kSlice) return true;
  return false;
}

// Features, or lines, whose order in memory (row, column, channel) is not that of their tensor.
bool Lowering::is_flattened(int64_t node) const {
  const Value& v = values_[node];
  return v.rank != 4 && (v.height != 1 || v.width != 1);
}

ImageSize Lowering::image_of(const Value& v) const { return {v.images, v.height, v.width, v.channels}; }

cpu::ConvGeometry Lowering::conv_geometry(int64_t node) const {
  const Node& n = graph_.nodes[node];
  cpu::ConvGeometry g = conv_geometry_of(n, values_[n.inputs[0]], values_[node]);
  g.algorithm = algorithm_[node];
  return g;
}

// Over flattened images a linear layer is a convolution whose kernel covers the image: no flattened copy is
// made.
cpu::ConvGeometry Lowering::linear_geometry(int64_t node) const {
  const Node& n = graph_.nodes[node];
  const Value& in = values_[n.inputs[0]];
  return {in.images, in.channels, n.attr[1], 1, in.height, in.width, 1, 1, 1, 1, 1, 1, n.activation};
}

void Lowering::choose_algorithms() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const Node& n = graph_.nodes[node];
    if (n.op == Op::kLinear) pairs_[node] = graph_.half() && takes_pairs(linear_geometry(node));
    if (n.op != Op::kConv2d || values_[node].images == 0) continue;
    cpu::ConvGeometry g = conv_geometry(node);
    g.algorithm = algorithm_of(n, g, graph_.half());
    pairs_[node] = graph_.half() && takes_pairs(g);
    if (!pairs_[node]) algorithm_[node] = g.algorithm;
    find_zones(node);
  }
}

// Tiles of dilated kernels do not tell padding from pixels.
bool Lowering::takes_prologue(int64_t node) const {
  return !algorithm_[node].direct() && conv_geometry(node).dilation_h == 1;
}

// An affine node with one reader that can do its work on the way in.
void Lowering::find_prologues() {
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    if (graph_.nodes[node].op != Op::kAffine || reader[node] < 0 || !is_short(graph_.nodes[node].activation))
      continue;
    const Node& next = graph_.nodes[reader[node]];
    const bool conv = next.op == Op::kConv2d && next.inputs[0] == static_cast<int64_t>(node) &&
                      (graph_.half() ? takes_prologue16(reader[node]) : takes_prologue(reader[node]));
    const bool pool = next.op == Op::kMaxPool2d || next.op == Op::kAvgPool2d || next.op == Op::kGlobalAvgPool;
    prologue_[node] = conv || pool;
  }
}

// Per node: the one node that reads it, -1 where there are several, or it is an output.
std::vector<int64_t> Lowering::only_readers() const {
  std::vector<int64_t> readers(graph_.nodes.size(), 0), reader(graph_.nodes.size(), -1);
  for (size_t node = 0; node < graph_.nodes.size(); ++node)
    for (const int64_t input : graph_.nodes[node].inputs) {
      ++readers[input];
      reader[input] = static_cast<int64_t>(node);
    }
  for (const int64_t output : graph_.outputs) readers[source_of(output)] += 2;
  for (size_t node = 0; node < graph_.nodes.size(); ++node)
    if (readers[node] != 1) reader[node] = -1;
  return reader;
}

// Convolutions whose only reader is a pooling, or a local response normalisation whose only reader is one,
// are computed with it, strip by strip, unless their weights would be read from memory for every strip.
void Lowering::find_conv_pools() {
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    const Node& n = graph_.nodes[node];
    if (n.op != Op::kConv2d || n.inputs.size() != 1 || reader[node] < 0 || prologue_[n.inputs[0]]) continue;
    if (!zones_[node].empty()) continue;
    int64_t pool = reader[node];
    const bool normed = graph_.nodes[pool].op == Op::kLocalResponseNorm && reader[pool] >= 0;
    if (normed) pool = reader[pool];
    const Op op = graph_.nodes[pool].op;
    const cpu::ConvGeometry g = conv_geometry(static_cast<int64_t>(node));
    if ((op != Op::kMaxPool2d && op != Op::kAvgPool2d) || g.narrow_groups() ||
        g.packed_bytes() > kStripWeightBytes || g.images == 0 || takes_pairs_here(static_cast<int64_t>(node)))
      continue;
    const Value& in = values_[graph_.nodes[pool].inputs[0]];
    std::vector<Strip> strips = cut_strips(g, window_on(graph_.nodes[pool], in).height, values_[pool].height);
    // One strip, of one long row, is one thread's work.
    if (g.images * static_cast<int64_t>(strips.size()) < 2 && g.flops() > kSharedFlops) continue;
    // What pools is rounded there already.
    if (g.algorithm.fixed && (normed || op != Op::kMaxPool2d || rows_repeated(g, strips) > kMostRepeated))
      continue;
    pooled_by_[node] = pool;
    if (normed) pooled_by_[reader[node]] = pool;
    strips_[node] = std::move(strips);
  }
}

// A shuffle of a concatenation's equal parts reads the parts: they need not lie side by side.
void Lowering::find_gathers() {
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    const Node& n = graph_.nodes[node];
    if (n.op != Op::kConcat || reader[node] < 0) continue;
    const Node& next = graph_.nodes[reader[node]];
    const auto parts = static_cast<int64_t>(n.inputs.size());
    gathered_[node] = next.op == Op::kChannelShuffle && next.attr[0] == parts &&
                      std::all_of(n.inputs.begin(), n.inputs.end(), [&](int64_t input) {
                        return values_[input].channels * parts == values_[node].channels;
                      });
  }
}

// The node whose value the first input is read from.
int64_t Lowering::read_by(int64_t node) const {
  const int64_t input = graph_.nodes[node].inputs[0];
  return prologue_[input] ? graph_.nodes[input].inputs[0] : input;
}

cpu::Prologue Lowering::prologue_of(int64_t node) const {
  const int64_t input = graph_.nodes[node].inputs[0];
  if (!prologue_[input]) return {};
  const Node& n = graph_.nodes[input];
  const Value& v = values_[input];
  cpu::Prologue p{
      constants_.constant(n.attr[0]), constants_.constant(n.attr[1]), n.activation, 0, 0, v.height, v.width};
  if (graph_.nodes[node].op == Op::kConv2d) {
    p.top = graph_.nodes[node].attr[Conv2dAttr::kPadTop];
    p.left = graph_.nodes[node].attr[Conv2dAttr::kPadLeft];
  }
  return p;
}

// What a convolution reads around its input.
Border Lowering::border_of(int64_t node) const {
  if (prologue_[graph_.nodes[node].inputs[0]] || !zones_[node].empty()) return {};
  if (graph_.half() && !takes_pairs_here(node)) return {};  // the padding is put around widened strips
  using A = Conv2dAttr;
  const auto& a = graph_.nodes[node].attr;
  cpu::Overreach beyond = cpu::overreach(conv_geometry(node));
  if (pooled_by_[node] >= 0) beyond.bottom = strips_overreach(conv_geometry(node), strips_[node]);
  return {a[A::kPadTop], a[A::kPadLeft], a[A::kPadBottom] + beyond.bottom, a[A::kPadRight] + beyond.right};
}

// Whether a convolution reads beyond the node's value.
bool Lowering::needs_border(int64_t node) const {
  for (int64_t reader = node + 1; reader < static_cast<int64_t>(graph_.nodes.size()); ++reader) {
    if (graph_.nodes[reader].op != Op::kConv2d || source_of(graph_.nodes[reader].inputs[0]) != node) continue;
    const Border b = border_of(reader);
    if (b.top || b.left || b.bottom || b.right) return true;
  }
  return false;
}

}  // namespace cnnfast::plan
