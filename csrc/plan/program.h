// A network planned for one set of input sizes: steps, and an arena in which every intermediate value has its
// place.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/parallel.h"
#include "plan/shapes.h"
#include "plan/step_group.h"
#include "plan/steps.h"

namespace cnnfast::plan {

// Weights as they are (transformed, and as whole numbers where the algorithm has those), as float32 after
// rounding to bfloat16, or as pairs of bfloat16 (cpu/bf16_table.h, cpu/short_pairs.h).
enum class WeightForm { kFloat, kRounded, kPairs, kShortPairs };

// Packs the constants of a convolution or linear node, or gives what was packed before; image sizes matter to
// a linear layer over flattened images.
class ConstantStore {
 public:
  virtual ~ConstantStore() = default;
  virtual std::shared_ptr<const ConvConstants> conv_constants(int64_t node, const cpu::ConvGeometry& geometry,
                                                              WeightForm form = WeightForm::kFloat) = 0;
  // Of a convolution by a part of its kernel: the geometry's taps, from a row and a column of taps on.
  virtual std::shared_ptr<const ConvConstants> window_constants(int64_t node,
                                                                const cpu::ConvGeometry& geometry,
                                                                int64_t row, int64_t column,
                                                                WeightForm form) = 0;
  virtual const float* constant(int64_t offset) const = 0;
};

class Program {
 public:
  Program(const Graph& graph, const std::vector<std::vector<int64_t>>& input_sizes, ConstantStore& constants);

  // Outputs for inputs of the planned sizes. Several threads may call at once: each takes an arena of its
  // own. `seconds`, if given, receives the time of every node.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs, std::vector<double>* seconds = nullptr);

  std::string text() const;
  int64_t arena_bytes() const { return arena_floats_ * static_cast<int64_t>(sizeof(float)); }

 private:
  class Arena;
  struct Output {
    std::vector<int64_t> sizes;
    int buffer;
  };

  friend class Lowering;
  std::unique_ptr<cpu::AlignedFloats> take_arena();
  void run_steps(const Memory& memory, int thread, int team, cpu::Barrier& barrier) const;
  void run_timed(const Memory& memory, int thread, int team, cpu::Barrier& barrier,
                 std::vector<double>& seconds) const;

  // The group that begins with a step, if there is one, among those from `next` on; takes it from them.
  const StepGroup* take_group(size_t step, size_t& next) const;
  // Every step whose phase is not that of the step before it waits for all threads.
  bool waits(size_t step) const { return step > 0 && phase_[step] != phase_[step - 1]; }

  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int64_t> phase_;          // of every step, rising
  std::vector<StepGroup> groups_;       // in the order of their steps
  std::vector<int64_t> buffer_offset_;  // in the arena; -1: an output tensor
  std::vector<Output> outputs_;
  std::vector<Value> inputs_;  // as images, reshaped if the network reshapes them
  std::vector<bool> input_reshaped_;
  int64_t arena_floats_ = 0;
  double flops_ = 0;
  bool half_ = false;  // values in the arena are bfloat16
  at::ScalarType result_ = at::kFloat;

  std::mutex mutex_;
  std::vector<std::unique_ptr<cpu::AlignedFloats>> free_arenas_;
};

}  // namespace cnnfast::plan
