#include "plan/lowering.h"

#include <algorithm>

#include "plan/gate_steps.h"
#include "plan/image_steps.h"
#include "plan/rearrange_steps.h"
#include "plan/steps16.h"
#include "plan/tuning.h"

namespace cnnfast::plan {

using cpu::Border;
using cpu::ImageSize;

namespace {

// What may be read again for every strip of a convolution with pooling.
constexpr int64_t kStripWeightBytes = 5 << 19;

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
      buffer_of_(graph.nodes.size(), -1),
      channel_of_(graph.nodes.size(), 0) {}

void Lowering::run() {
  choose_algorithms();
  find_prologues();
  find_conv_pools();
  find_gathers();
  if (!graph_.half()) {
    find_siblings();
    find_pool_convs();
    find_scale_convs();
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

// Features whose order in memory (row, column, channel) is not the order of a flattened tensor.
bool Lowering::is_flattened(int64_t node) const {
  const Value& v = values_[node];
  return v.rank == 2 && (v.height != 1 || v.width != 1);
}

ImageSize Lowering::image_of(const Value& v) const { return {v.images, v.height, v.width, v.channels}; }

int Lowering::new_buffer(int64_t node, bool external) {
  Buffer b;
  b.size = image_of(values_[node]);
  b.channels = b.size.channels;
  b.external = external;
  buffers_.push_back(b);
  return static_cast<int>(buffers_.size()) - 1;
}

// Nodes with a step that writes any place.
bool Lowering::can_write_slice(int64_t node) const {
  const Op op = graph_.nodes[node].op;
  return op != Op::kInput && op != Op::kReshapeImage && !is_view(op) && buffer_of_[node] == -1;
}

cpu::ConvGeometry Lowering::conv_geometry(int64_t node) const {
  const Node& n = graph_.nodes[node];
  cpu::ConvGeometry g = conv_geometry_of(n, values_[n.inputs[0]], values_[node]);
  g.algorithm = algorithm_[node];
  return g;
}

void Lowering::choose_algorithms() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node)
    if (graph_.nodes[node].op == Op::kConv2d && values_[node].images > 0 && !takes_pairs_here(node))
      algorithm_[node] = algorithm_of(graph_.nodes[node], conv_geometry(node));
}

// An affine node with one reader that can do its work on the way in.
void Lowering::find_prologues() {
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    if (graph_.nodes[node].op != Op::kAffine || reader[node] < 0 || !is_short(graph_.nodes[node].activation))
      continue;
    const Node& next = graph_.nodes[reader[node]];
    const bool conv = next.op == Op::kConv2d && next.inputs[0] == static_cast<int64_t>(node) &&
                      (graph_.half() ? !takes_pairs_here(reader[node]) : !algorithm_[reader[node]].direct());
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
    int64_t pool = reader[node];
    const bool normed = graph_.nodes[pool].op == Op::kLocalResponseNorm && reader[pool] >= 0;
    if (normed) pool = reader[pool];
    const Op op = graph_.nodes[pool].op;
    const cpu::ConvGeometry g = conv_geometry(static_cast<int64_t>(node));
    if ((op != Op::kMaxPool2d && op != Op::kAvgPool2d) || g.narrow_groups() ||
        g.packed_bytes() > kStripWeightBytes || g.images == 0 || takes_pairs_here(static_cast<int64_t>(node)))
      continue;
    pooled_by_[node] = pool;
    if (normed) pooled_by_[reader[node]] = pool;
    const Value& in = values_[graph_.nodes[pool].inputs[0]];
    strips_[node] = cut_strips(g, window_on(graph_.nodes[pool], in).height, values_[pool].height);
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
  if (prologue_[graph_.nodes[node].inputs[0]]) return {};
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

// An output is computed straight into its tensor where it has no border and one reader wants it there.
void Lowering::place_outputs() {
  for (const int64_t output : graph_.outputs) {
    const int64_t node = source_of(output);
    const int buffer = new_buffer(output, true);
    output_buffer_.push_back(buffer);
    if (graph_.half() || is_flattened(output) || takes_slice(output) || !can_write_slice(node)) continue;
    if (!needs_border(node)) buffer_of_[node] = buffer;
  }
}

// Outer concatenations first, so that an inner one finds its own place. An output tensor has no room for a
// border: what is read with padding keeps a buffer of its own and is copied there.
void Lowering::place_concats() {
  for (int64_t node = static_cast<int64_t>(graph_.nodes.size()) - 1; node >= 0; --node) {
    if (graph_.nodes[node].op != Op::kConcat || gathered_[node]) continue;
    if (buffer_of_[node] == -1) find_slice_of_concat(node);
    if (buffer_of_[node] == -1) buffer_of_[node] = new_buffer(node, false);
    const bool external = buffers_[buffer_of_[node]].external;
    int64_t channel = channel_of_[node];
    for (const int64_t input : graph_.nodes[node].inputs) {
      if (can_write_slice(input) && !(external && needs_border(input))) {
        buffer_of_[input] = buffer_of_[node];
        channel_of_[input] = channel;
      }
      channel += values_[input].channels;
    }
  }
}

// A concatenation whose parts lie side by side in a longer one, as dense blocks have one for every layer, is
// a slice of that.
void Lowering::find_slice_of_concat(int64_t node) {
  const auto& inputs = graph_.nodes[node].inputs;
  const int buffer = buffer_of_[inputs[0]];
  if (buffer == -1 || (buffers_[buffer].external && needs_border(node))) return;
  int64_t channel = channel_of_[inputs[0]];
  for (const int64_t input : inputs) {
    if (is_view(graph_.nodes[input].op) || buffer_of_[input] != buffer || channel_of_[input] != channel)
      return;
    channel += values_[input].channels;
  }
  buffer_of_[node] = buffer;
  channel_of_[node] = channel_of_[inputs[0]];
}

void Lowering::place_rest() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const Op op = graph_.nodes[node].op;
    if (is_view(op) || prologue_[node] || gathered_[node] || projected_[node] || scaled_[node] ||
        pooled_by_[node] >= 0 || expanded_by_[node] >= 0 || buffer_of_[node] != -1)
      continue;
    const bool reshaped =
        op == Op::kInput && std::any_of(graph_.nodes.begin(), graph_.nodes.end(), [&](const Node& n) {
          return n.op == Op::kReshapeImage && n.inputs[0] == node;
        });
    if (reshaped) continue;
    const int operand = op == Op::kConv2d ? buffer_of_residual(node) : buffer_of_operand(node);
    buffer_of_[node] = operand >= 0 ? operand : new_buffer(node, false);
  }
}

void Lowering::demand_border(int64_t node, const Border& border) {
  Border& b = buffers_[buffer_of_[source_of(node)]].border;
  b.top = std::max(b.top, border.top);
  b.left = std::max(b.left, border.left);
  b.bottom = std::max(b.bottom, border.bottom);
  b.right = std::max(b.right, border.right);
}

void Lowering::demand_borders() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    if (graph_.nodes[node].op != Op::kConv2d) continue;
    const int64_t from = read_by(node);
    // What reads values that are in no buffer makes its own border.
    if (!projected_[from] && !scaled_[from] && expanded_by_[from] < 0) demand_border(from, border_of(node));
  }
}

Place Lowering::place(int64_t node) const {
  const int64_t source = source_of(node);
  const Buffer& b = buffers_[buffer_of_[source]];
  Place p;
  p.buffer = buffer_of_[source];
  p.channel = channel_of_[source];
  for (int64_t at = node; at != source; at = graph_.nodes[at].inputs[0])
    if (graph_.nodes[at].op == Op::kSlice) p.channel += graph_.nodes[at].attr[0];
  p.size = image_of(values_[node]);
  p.border = b.border;
  p.buffer_channels = b.channels;
  p.fills_border = b.border.top || b.border.left || b.border.bottom || b.border.right;
  return p;
}

void Lowering::emit(int64_t node) {
  const Node& n = graph_.nodes[node];
  if (is_view(n.op) || prologue_[node] || gathered_[node] || joined_[node] || pooled_by_[node] >= 0) return;
  if (projected_[node] || scaled_[node] || expanded_by_[node] >= 0) return;
  if (n.op == Op::kConv2d && projected_[n.inputs[0]]) return emit_pool_conv(node);
  if (n.op == Op::kConv2d && scaled_[n.inputs[0]]) return emit_scale_conv(node);
  if (n.op == Op::kConv2d && expanded_by_[n.inputs[0]] == node) return emit_expansion(node);
  if (!siblings_[node].empty()) return emit_siblings(node);
  const auto from = [&](size_t i) { return place(n.inputs[i]); };
  switch (n.op) {
    case Op::kInput:
    case Op::kReshapeImage: {
      if (buffer_of_[node] == -1) return;
      const int64_t input = n.op == Op::kInput ? node : n.inputs[0];
      const auto at = std::find(graph_.inputs.begin(), graph_.inputs.end(), input) - graph_.inputs.begin();
      return add_step(graph_.half() ? copy_in16_step(node, at, place(node))
                                    : copy_in_step(node, at, place(node)));
    }
    case Op::kConv2d:
      return emit_conv(node);
    case Op::kLinear:
      return emit_linear(node);
    case Op::kMaxPool2d:
    case Op::kAvgPool2d:
    case Op::kGlobalAvgPool:
      return emit_pool(node);
    case Op::kFlatten:
    case Op::kSlice:
    case Op::kToImage:
      return;
    case Op::kMultiply:
    case Op::kAdd:
      return emit_binary(node);
    case Op::kChannelShuffle:
      return emit_shuffle(node);
    case Op::kAdaptiveAvgPool2d:
    case Op::kAdaptiveMaxPool2d:
      return add(adaptive_pool_step(node, n.op == Op::kAdaptiveMaxPool2d, from(0), place(node)));
    case Op::kPad: {
      const Value &in = values_[n.inputs[0]], &out = values_[node];
      const bool even = n.inputs.size() == 2;
      const int64_t top = even ? (out.height - in.height) / 2 : n.attr[0];
      const int64_t left = even ? (out.width - in.width) / 2 : n.attr[1];
      return add(pad_step(node, top, left, static_cast<float>(fraction(n.attr[4])), from(0), place(node)));
    }
    case Op::kMirrorPad:
      return add(mirror_pad_step(node, n.attr, from(0), place(node)));
    case Op::kInterpolate:
      return add(interpolate_step(node, n.attr, from(0), place(node)));
    case Op::kLayerNorm:
    case Op::kGroupNorm:
      return emit_norm(node);
    case Op::kCrop:
      return add(crop_step(node, n.attr, from(0), place(node)));
    case Op::kDepthToSpace:
      return add(depth_to_space_step(node, n.attr, from(0), place(node)));
    case Op::kChannelMax:
      return add(channel_max_step(node, from(0), place(node)));
    case Op::kImageNorm:
      return add(image_norm_step(node, from(0), place(node)));
    case Op::kChannelConv:
      return add(channel_conv_step(node, constants_.constant(n.attr[0]), n.attr[1],
                                   n.attr[2] < 0 ? nullptr : constants_.constant(n.attr[2]), from(0),
                                   place(node)));
    case Op::kSoftmax:
      return add(softmax_step(node, n.attr[0] == 1, from(0), place(node)));
    case Op::kPower:
      return add(power_step(node, fraction(n.attr[0]), from(0), place(node)));
    case Op::kAttentionPool:
      return add(attention_pool_step(node, from(0), from(1), place(node)));
    case Op::kPReLU:
      return add(prelu_step(node, constants_.constant(n.attr[0]), from(0), place(node)));
    case Op::kConcat:
      return emit_concat(node);
    case Op::kActivation:
      return add(affine_step(node, nullptr, nullptr, n.activation, from(0), place(node), nullptr));
    case Op::kLocalResponseNorm:
      return add(lrn_step(node, lrn_params_of(n), from(0), place(node)));
    case Op::kAffine:
      return add(affine_step(node, constants_.constant(n.attr[0]), constants_.constant(n.attr[1]),
                             n.activation, from(0), place(node), nullptr));
  }
}

void Lowering::emit_conv(int64_t node) {
  using A = Conv2dAttr;
  const Node& n = graph_.nodes[node];
  const auto& a = n.attr;
  const cpu::ConvGeometry g = conv_geometry(node);
  if (graph_.half()) return emit_conv16(node, g, a[A::kPadTop], a[A::kPadLeft]);
  std::optional<Place> residual;
  if (n.inputs.size() == 2) residual = place(n.inputs[1]);
  add(conv_step(node, g, a[A::kPadTop], a[A::kPadLeft], constants_.conv_constants(node, g),
                place(read_by(node)), place(node), residual ? &*residual : nullptr, prologue_of(node)));
}

// Over flattened images a linear layer is a convolution whose kernel covers the image: no flattened copy is
// made.
void Lowering::emit_linear(int64_t node) {
  const Node& n = graph_.nodes[node];
  const Value& in = values_[n.inputs[0]];
  const cpu::ConvGeometry g{in.images, in.channels, n.attr[1], 1, in.height, in.width,    1,
                            1,         1,           1,         1, 1,         n.activation};
  if (graph_.half()) return emit_conv16(node, g, 0, 0);
  add(conv_step(node, g, 0, 0, constants_.conv_constants(node, g), place(n.inputs[0]), place(node), nullptr,
                {}));
}

// A sum or a product; with what is added to a product.
void Lowering::emit_binary(int64_t node) {
  const Node& n = graph_.nodes[node];
  std::vector<Place> reads;
  for (const int64_t input : n.inputs) reads.push_back(place(input));
  const Value &x = values_[n.inputs[0]], &other = values_[n.inputs[1]];
  const Repeated repeated = x == other                 ? Repeated::kNot
                            : is_per_channel(x, other) ? Repeated::kOverPixels
                                                       : Repeated::kOverChannels;
  add(binary_step(node, n.op == Op::kMultiply, repeated, n.activation, std::move(reads), place(node)));
}

void Lowering::emit_shuffle(int64_t node) {
  const Node& n = graph_.nodes[node];
  const int64_t source = n.inputs[0], groups = n.attr[0];
  std::vector<Place> parts;
  if (gathered_[source]) {
    for (const int64_t input : graph_.nodes[source].inputs) parts.push_back(place(input));
  } else {
    Place part = place(source);
    part.size.channels /= groups;
    for (int64_t i = 0; i < groups; ++i, part.channel += part.size.channels) parts.push_back(part);
  }
  add(shuffle_step(node, std::move(parts), place(node)));
}

void Lowering::emit_norm(int64_t node) {
  const Node& n = graph_.nodes[node];
  const auto constant = [&](int64_t offset) { return offset < 0 ? nullptr : constants_.constant(offset); };
  const int64_t groups = n.op == Op::kGroupNorm ? n.attr[3] : 0;
  add(norm_step(node, groups, constant(n.attr[0]), constant(n.attr[1]),
                static_cast<float>(fraction(n.attr.back())), n.activation, place(n.inputs[0]), place(node)));
}

cpu::PoolCall Lowering::pool_of(int64_t node) const {
  const Node& n = graph_.nodes[node];
  const ImageSize from = image_of(values_[n.inputs[0]]), to = image_of(values_[node]);
  if (n.op == Op::kGlobalAvgPool) {
    const WindowPair whole{{0, 0, from.height, 1, 0}, {0, 0, from.width, 1, 0}};
    return pool_call(whole, 1, 1, true, 0, from, to);
  }
  const bool max = n.op == Op::kMaxPool2d;
  return pool_call(window_on(n, values_[n.inputs[0]]), max ? n.attr[6] : 1, max ? n.attr[7] : 1,
                   max ? false : n.attr[7] == 1, max ? 0 : n.attr[8], from, to);
}

void Lowering::emit_pool(int64_t node) {
  const Node& n = graph_.nodes[node];
  const bool max = n.op == Op::kMaxPool2d;
  cpu::PoolCall call = pool_of(node);
  int64_t conv = n.inputs[0];
  if (pooled_by_[conv] == node) {
    std::optional<LrnParams> norm;
    if (graph_.nodes[conv].op == Op::kLocalResponseNorm) {
      norm = lrn_params_of(graph_.nodes[conv]);
      conv = graph_.nodes[conv].inputs[0];
    }
    if (graph_.half()) return emit_conv_pool16(conv, node, norm);
    const cpu::ConvGeometry g = conv_geometry(conv);
    const auto& a = graph_.nodes[conv].attr;
    return add(conv_pool_step(conv, g, a[Conv2dAttr::kPadTop], a[Conv2dAttr::kPadLeft],
                              constants_.conv_constants(conv, g), strips_[conv], norm ? &*norm : nullptr, max,
                              call, place(read_by(conv)), place(node)));
  }
  if (n.op == Op::kGlobalAvgPool && sums_of_[conv] >= 0) {
    const Place sums = place_of_sums(conv);
    call.divisor_override = call.in_height * call.in_width;
    call.in_height = sums.size.height;
    call.in_width = 1;
    return add(mean_step(node, call, sums, place(node)));
  }
  call.prologue = prologue_of(node);
  if (n.op == Op::kGlobalAvgPool) {
    const auto step = graph_.half() ? mean16_step : mean_step;
    return add_step(step(node, call, place(read_by(node)), place(node)));
  }
  add(pool_step(node, max, call, place(read_by(node)), place(node)));
}

// Most inputs were computed in place; the others are copied into their slice.
void Lowering::emit_concat(int64_t node) {
  int64_t channel = channel_of_[node];
  for (const int64_t input : graph_.nodes[node].inputs) {
    const Place from = place(input);
    if (from.buffer != buffer_of_[node] || from.channel != channel) {
      Place to = place(node);
      to.channel = channel;
      to.size = from.size;
      add_step(graph_.half() ? copy16_step(node, from, to) : copy_out_step(node, from, to, false));
    }
    channel += from.size.channels;
  }
}

void Lowering::emit_outputs() {
  for (size_t i = 0; i < graph_.outputs.size(); ++i) {
    const int64_t output = graph_.outputs[i], node = source_of(output);
    program_.outputs_.push_back({values_[output].sizes(), output_buffer_[i]});
    if (buffer_of_[node] == output_buffer_[i] && !takes_slice(output)) continue;
    const Place from = place(output);
    Place to = from;
    to.buffer = output_buffer_[i];
    to.channel = 0;
    to.border = {};
    to.buffer_channels = from.size.channels;
    to.fills_border = false;
    const bool flatten = is_flattened(output);
    add_step(graph_.half() ? copy_out16_step(output, from, to, flatten, graph_.results == Storage::kFloat32)
                           : copy_out_step(output, from, to, flatten));
  }
}

void Lowering::add_step(std::unique_ptr<Step> step) {
  program_.flops_ += step->flops();
  program_.steps_.push_back(std::move(step));
}

}  // namespace cnnfast::plan
