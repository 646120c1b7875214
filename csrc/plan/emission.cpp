// The part of Lowering that makes the steps of a node.
#include <algorithm>

#include "cpu/bf16_table.h"
#include "plan/gate_steps.h"
#include "plan/image_steps.h"
#include "plan/lowering.h"
#include "plan/rearrange_steps.h"
#include "plan/steps16.h"

namespace cnnfast::plan {

using cpu::Border;
using cpu::ImageSize;

void Lowering::emit(int64_t node) {
  const Node& n = graph_.nodes[node];
  if (is_view(n.op) || prologue_[node] || gathered_[node] || joined_[node] || pooled_by_[node] >= 0) return;
  if (projected_[node] || scaled_[node] || expanded_by_[node] >= 0 || is_written_by_conv(node)) return;
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
    case Op::kToLine:
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
  if (!zones_[node].empty()) return emit_zones(node);
  if (graph_.half()) return emit_conv16(node, g, a[A::kPadTop], a[A::kPadLeft]);
  std::optional<Place> residual;
  if (n.inputs.size() == 2) residual = place(n.inputs[1]);
  add(conv_step(node, g, a[A::kPadTop], a[A::kPadLeft], constants_.conv_constants(node, g),
                place(read_by(node)), place(node), residual ? &*residual : nullptr, prologue_of(node)));
}

void Lowering::emit_linear(int64_t node) {
  const cpu::ConvGeometry g = linear_geometry(node);
  if (graph_.half()) return emit_conv16(node, g, 0, 0);
  add(conv_step(node, g, 0, 0, constants_.conv_constants(node, g), place(graph_.nodes[node].inputs[0]),
                place(node), nullptr, {}));
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
  const bool multiply = n.op == Op::kMultiply;
  if (graph_.half() && takes_binary16(multiply, repeated, n.activation))
    return add_step(binary16_step(node, multiply, repeated, n.activation, std::move(reads), place(node)));
  add(binary_step(node, multiply, repeated, n.activation, std::move(reads), place(node)));
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
  if (graph_.half() && is_max_pool_as_stored(node))
    return add_step(max_pool16_step(node, call, place(read_by(node)), place(node)));
  if (graph_.half() && !max && cpu::Affine16Call<uint16_t>::serves(call.prologue.activation))
    return add_step(avg_pool16_step(node, call, place(read_by(node)), place(node)));
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
