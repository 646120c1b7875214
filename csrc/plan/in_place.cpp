// Sums written over the residual they add: one buffer less where a residual block needs three.
#include <algorithm>

#include "cpu/bf16_table.h"
#include "cpu/cache_size.h"
#include "cpu/parallel.h"
#include "plan/lowering.h"

namespace cnnfast::plan {

// The node whose step reads for `reader`: what is done on the way into another layer, or with the pooling
// behind it, is read there.
int64_t Lowering::last_step_of(int64_t reader) const {
  if (pooled_by_[reader] >= 0) return pooled_by_[reader];
  if (expanded_by_[reader] >= 0) return last_step_of(expanded_by_[reader]);
  // A concatenation's inputs lie in its memory: who reads it, reads them.
  if (graph_.nodes[reader].op == Op::kConcat) return std::max(reader, last_reader(reader));
  const bool has_step =
      !is_view(graph_.nodes[reader].op) && !prologue_[reader] && !projected_[reader] && !scaled_[reader];
  return has_step ? reader : last_reader(reader);
}

// Of the node's value; behind all nodes where it is an output.
int64_t Lowering::last_reader(int64_t node) const {
  const auto count = static_cast<int64_t>(graph_.nodes.size());
  if (std::count(graph_.outputs.begin(), graph_.outputs.end(), node)) return count;
  int64_t last = -1;
  for (int64_t reader = node + 1; reader < count; ++reader) {
    const auto& inputs = graph_.nodes[reader].inputs;
    if (std::count(inputs.begin(), inputs.end(), node)) last = std::max(last, last_step_of(reader));
  }
  return last;
}

// Whether the residual's image is one of which strips pass through the convolutions in front of `node`, in
// bfloat16 plans: a depthwise one; or, where tiles multiply and a kernel of one pixel waits for memory, a
// block's that begins with the residual. The next strip reads rows of it that this one's sums would be
// written over.
bool Lowering::keeps_strips(int64_t node) const {
  constexpr int64_t kLeastValues = 1 << 15;  // fewer stay in cache as whole images
  const int64_t from = graph_.nodes[node].inputs[0];
  if (!graph_.half() || graph_.nodes[from].op != Op::kConv2d) return false;
  const cpu::ConvGeometry g = conv_geometry(from);
  const int64_t values = values_[node].features();
  if (g.groups > 1 && g.groups == g.in_channels) return values >= kLeastValues;
  const int64_t cache = cpu::second_level_cache(cpu::team_size()) / static_cast<int64_t>(sizeof(uint16_t));
  const cpu::ConvGeometry last = conv_geometry(node);
  return cpu::multiplies_by_tiles() && last.kernel_h * last.kernel_w == 1 && values > cache / 4 &&
         begins_with(node, graph_.nodes[node].inputs[1]);
}

// Whether the convolutions that lead to `node`, one behind the other, begin with that value.
bool Lowering::begins_with(int64_t node, int64_t value) const {
  constexpr int kMostConvolutions = 3;
  int64_t from = graph_.nodes[node].inputs[0];
  for (int i = 0; i < kMostConvolutions && graph_.nodes[from].op == Op::kConv2d; ++i) {
    from = graph_.nodes[from].inputs[0];
    if (from == value) return true;
  }
  return false;
}

// The residual's buffer, where the convolution may write over it: it has no later reader, and each value of
// it is read where its sum is written. Direct convolutions of float32 values keep partial sums in their
// output: not those.
int Lowering::buffer_of_residual(int64_t node) const {
  const Node& n = graph_.nodes[node];
  const bool partial_sums = algorithm_[node].direct() && !graph_.half();
  if (n.op != Op::kConv2d || n.inputs.size() != 2 || partial_sums) return -1;
  const int64_t residual = n.inputs[1];
  if (keeps_strips(node) || source_of(read_by(node)) == residual || !may_be_overwritten(residual, node))
    return -1;
  return buffer_of_[residual];
}

// Whether an operand has its memory for itself and `node` is the last that looks at it.
bool Lowering::may_be_overwritten(int64_t operand, int64_t node) const {
  if (is_view(graph_.nodes[operand].op) || buffer_of_[operand] == -1) return false;
  const Buffer& b = buffers_[buffer_of_[operand]];
  const bool own = !b.external && b.channels == values_[operand].channels;
  if (!own || last_reader(operand) != node) return false;
  // Parts of a concatenation lie there, too, and may have readers of their own.
  for (int64_t other = 0; other < node; ++other)
    if (buffer_of_[other] == buffer_of_[operand] && last_reader(other) > node) return false;
  return true;
}

// The buffer of an operand of the result's shape, where a step that works value by value may write over it.
int Lowering::buffer_of_operand(int64_t node) const {
  const Node& n = graph_.nodes[node];
  const bool by_value = n.op == Op::kActivation || n.op == Op::kAffine || n.op == Op::kAdd ||
                        n.op == Op::kMultiply || n.op == Op::kPReLU;
  if (!by_value) return -1;
  for (const int64_t operand : n.inputs) {
    if (!(values_[operand] == values_[node]) || !may_be_overwritten(operand, node)) continue;
    // Another slice of the same memory would be read after it is written.
    const auto elsewhere = [&](int64_t other) { return other != operand && source_of(other) == operand; };
    if (std::none_of(n.inputs.begin(), n.inputs.end(), elsewhere)) return buffer_of_[operand];
  }
  return -1;
}

}  // namespace cnnfast::plan
