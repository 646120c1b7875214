#include "plan/program.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <sstream>

#include "cpu/bf16_table.h"
#include "cpu/conv16_job.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "plan/lowering.h"
#include "plan/pace.h"

namespace cnnfast::plan {
namespace {

// Below this much work a second thread saves nothing.
constexpr double kSerialFlops = 2e5;
// Below this much, waking one costs more than it saves: only threads that are awake are asked for.
constexpr double kBriefFlops = 1e7;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Brings the first constants of the next step near while a thread waits for the others.
class Fetch {
 public:
  explicit Fetch(const Constants& constants)
      : at_(constants.data), end_(constants.data + std::min(constants.floats, kFloats)) {}
  bool operator()() {
    for (int i = 0; i < kLines && at_ < end_; ++i, at_ += kLineFloats) __builtin_prefetch(at_, 0, 2);
    return at_ < end_;
  }

 private:
  static constexpr int64_t kFloats = 32 * 1024, kLineFloats = 16;
  static constexpr int kLines = 8;  // between two looks at the barrier
  const float* at_;
  const float* end_;
};

cpu::TensorStrides input_strides(const at::Tensor& t, const Value& v, bool reshaped) {
  if (reshaped) {
    const int64_t plane = v.height * v.width;
    return {plane * v.channels, plane, v.width, 1};
  }
  if (t.dim() == 2) return {t.stride(0), t.stride(1), 0, 0};
  if (t.dim() == 3) return {t.stride(0), t.stride(1), 0, t.stride(2)};
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

}  // namespace

Program::Program(const Graph& graph, const std::vector<std::vector<int64_t>>& input_sizes,
                 ConstantStore& constants) {
  const auto values = infer(graph, input_sizes);
  for (const int64_t input : graph.inputs) {
    Value v = values[input];
    bool reshaped = false;
    for (size_t id = 0; id < graph.nodes.size(); ++id)
      if (graph.nodes[id].op == Op::kReshapeImage && graph.nodes[id].inputs[0] == input) {
        v = values[id];
        reshaped = true;
      }
    inputs_.push_back(v);
    input_reshaped_.push_back(reshaped);
  }
  half_ = graph.half();
  if (graph.results == Storage::kBFloat16) result_ = at::kBFloat16;
  const Graph sized = with_sized_padding(graph, values);
  Lowering(sized, values, constants, *this).run();
}

std::unique_ptr<cpu::AlignedFloats> Program::take_arena() {
  {
    std::lock_guard lock(mutex_);
    if (!free_arenas_.empty()) {
      auto arena = std::move(free_arenas_.back());
      free_arenas_.pop_back();
      return arena;
    }
  }
  try {
    return std::make_unique<cpu::AlignedFloats>(arena_floats_);
  } catch (const std::bad_alloc&) {
    TORCH_CHECK(false, "cnnfast: activations of ", arena_floats_ * static_cast<int64_t>(sizeof(float)),
                " bytes: there is no memory for them");
  }
}

std::vector<at::Tensor> Program::run(const std::vector<at::Tensor>& inputs, std::vector<double>* seconds) {
  std::vector<at::Tensor> outputs, dense;
  Memory memory;
  memory.buffers.resize(buffer_offset_.size(), nullptr);
  for (const Output& output : outputs_) {
    const auto format =
        output.sizes.size() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    outputs.push_back(at::empty(output.sizes, inputs[0].options().dtype(result_), format));
    memory.buffers[output.buffer] = static_cast<float*>(outputs.back().data_ptr());
  }
  if (inputs_[0].images == 0) return outputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    dense.push_back(input_reshaped_[i] ? inputs[i].contiguous() : inputs[i]);
    const at::Tensor& x = dense.back();
    const bool half = x.scalar_type() == at::kBFloat16;
    memory.inputs.push_back({half ? nullptr : x.const_data_ptr<float>(),
                             half ? static_cast<const uint16_t*>(x.const_data_ptr()) : nullptr,
                             input_strides(x, inputs_[i], input_reshaped_[i])});
  }
  auto arena = take_arena();
  for (size_t b = 0; b < buffer_offset_.size(); ++b)
    if (buffer_offset_[b] >= 0) memory.buffers[b] = arena->data() + buffer_offset_[b];
  const bool brief = flops_ < kBriefFlops;
  const bool serial = flops_ < kSerialFlops || (brief && !Pace::here().is_steady());
  cpu::parallel_team(serial ? 1 : cpu::team_size(), [&](int thread, int team, cpu::Barrier& barrier) {
    const cpu::TileUse tiles(half_);
    if (seconds)
      run_timed(memory, thread, team, barrier, *seconds);
    else
      run_steps(memory, thread, team, barrier);
  });
  if (brief) Pace::here().call_ended();
  std::lock_guard lock(mutex_);
  free_arenas_.push_back(std::move(arena));
  return outputs;
}

const StepGroup* Program::take_group(size_t step, size_t& next) const {
  return next < groups_.size() && groups_[next].begin() == step ? &groups_[next++] : nullptr;
}

// Shares are cut the same way everywhere, and the first ones may be larger: threads change places from step
// to step of a phase.
void Program::run_steps(const Memory& memory, int thread, int team, cpu::Barrier& barrier) const {
  int rank = thread;
  bool grouped = false;  // the steps in front of this one
  size_t next_group = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const StepGroup* group = take_group(i, next_group);
    const bool depth_first = group && group->fits(team);
    if (waits(i) || grouped || (depth_first && i > 0)) {
      rank = thread;
      barrier.wait(Fetch(steps_[i]->first_constants(rank, team)));
    }
    grouped = depth_first;
    if (depth_first) {
      group->run(memory, thread, team, nullptr);
      i = group->end() - 1;
      continue;
    }
    steps_[i]->run(memory, rank, team);
    rank = rank + 1 < team ? rank + 1 : 0;
  }
}

// With a barrier behind every step, so that its time is its own; in a group it is the first thread's.
void Program::run_timed(const Memory& memory, int thread, int team, cpu::Barrier& barrier,
                        std::vector<double>& seconds) const {
  double last = now_seconds();
  size_t next_group = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const StepGroup* group = take_group(i, next_group);
    if (group && group->fits(team)) {
      std::vector<double> parts(group->end() - i, 0.0);
      group->run(memory, thread, team, parts.data());
      barrier.wait();
      for (size_t k = 0; thread == 0 && k < parts.size(); ++k) seconds[steps_[i + k]->node()] += parts[k];
      i = group->end() - 1;
      last = now_seconds();
      continue;
    }
    steps_[i]->run(memory, thread, team);
    barrier.wait();
    if (thread != 0) continue;
    const double now = now_seconds();
    seconds[steps_[i]->node()] += now - last;
    last = now;
  }
}

std::string Program::text() const {
  std::ostringstream out;
  size_t next_group = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const auto& step = steps_[i];
    const Place& to = step->writes();
    if (const StepGroup* group = take_group(i, next_group)) out << "depth first: " << group->text() << "\n";
    out << "phase " << phase_[i] << ", node " << step->node() << ": " << step->text();
    if (to.buffer_channels != to.size.channels)
      out << ", channels " << to.channel << " to " << to.channel + to.size.channels << " of "
          << to.buffer_channels;
    if (step->flops() > 0) out << ", " << step->flops() / 1e6 << " MFLOP";
    out << "\n";
  }
  out << "arena " << arena_bytes() << " bytes" << (half_ ? " of bfloat16" : "") << ", " << flops_ / 1e6
      << " MFLOP, kernels " << cpu::active_isa() << "\n";
  return out.str();
}

}  // namespace cnnfast::plan
