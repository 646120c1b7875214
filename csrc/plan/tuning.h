// Which algorithm computes a convolution: by measured times where a plan was tuned, else by the model of
// what each costs. The table of measured times is the process's own; its file is Python's business.
#pragma once
#include "cpu/conv_job.h"
#include "plan/graph.h"

namespace cnnfast::plan {

// A table of measurements has these columns, all int64. Points and tile are 0 for direct convolution.
enum class TimeColumn : size_t {
  kThreads,
  kImages,
  kInChannels,
  kOutChannels,
  kGroups,
  kKernelH,
  kKernelW,
  kOutHeight,
  kOutWidth,
  kPoints,
  kTile,
  kNanoseconds,
  kCount
};

// Of a convolution node, `half`: of bfloat16 values. Measurements count for the present number of threads
// alone.
cpu::ConvAlgorithm algorithm_of(const Node& node, const cpu::ConvGeometry& geometry, bool half);

struct Tuned {
  int64_t timed = 0;  // convolutions timed now
  int64_t known = 0;  // convolutions whose times were in the table
};
// Times the algorithms of every convolution that is marked as tuned and has a choice.
Tuned tune(const Graph& graph, const std::vector<std::vector<int64_t>>& input_sizes);

// All measurements, a row each.
at::Tensor conv_times();
// Keeps what is in the table already, so that choices in a running process stay.
void add_conv_times(const at::Tensor& times);
void clear_conv_times();

}  // namespace cnnfast::plan
