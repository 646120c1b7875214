// The part of Lowering that gives every value its place: a buffer, channels of a concatenation, a border.
#include <algorithm>

#include "plan/lowering.h"

namespace cnnfast::plan {

using cpu::Border;

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
        pooled_by_[node] >= 0 || expanded_by_[node] >= 0 || shuffled_by_[node] >= 0 || buffer_of_[node] != -1)
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

// The kernels for pairs load pixels where they lie, tap by tap: those at multiples of 1 KiB share a few sets
// of the first-level cache.
void Lowering::spread_pixels(int64_t node) {
  constexpr int64_t kPeriod = 512, kLine = 32;  // bfloat16 values
  Buffer& b = buffers_[buffer_of_[source_of(node)]];
  if (!b.external && b.channels % kPeriod == 0) b.channels += kLine;
}

void Lowering::demand_borders() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    if (graph_.nodes[node].op != Op::kConv2d) continue;
    const int64_t from = read_by(node);
    if (takes_pairs_here(node) && !is_plain_1x1(node)) spread_pixels(from);
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

}  // namespace cnnfast::plan
