#include "cpu/input_grad_parts.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/conv_job.h"

namespace cnnfast::cpu {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }

// Input place i and kernel place k belong to output place (i + padding - k * dilation) / stride. With stride
// 1 there is one phase; else, with dilation 1, a phase per remainder of i + padding.
std::vector<InputGradientPart::Phase> phases_of(int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                                                int64_t dilation) {
  std::vector<InputGradientPart::Phase> found;
  for (int64_t remainder = 0; remainder < stride; ++remainder) {
    const int64_t start = divide_up(padding - remainder, stride);  // output place of the phase's first input
    InputGradientPart::Phase phase;
    phase.first = start * stride + remainder - padding;
    phase.places = phase.first < size ? (size - phase.first + stride - 1) / stride : 0;
    phase.count = remainder < kernel ? (kernel - remainder + stride - 1) / stride : 0;
    phase.last = remainder + (phase.count - 1) * stride;
    phase.lowest = start - (phase.count - 1) * dilation;
    found.push_back(phase);
  }
  return found;
}

}  // namespace

InputGradientParts::InputGradientParts(at::IntArrayRef input_sizes, at::IntArrayRef weight_sizes,
                                       const Conv2dParams& params, at::IntArrayRef output_sizes,
                                       Values values) {
  const auto side = [&](int i) {
    return phases_of(input_sizes[2 + i], weight_sizes[2 + i], params.stride[i], params.padding[i],
                     params.dilation[i]);
  };
  const auto all_columns = side(1);
  for (const auto& rows : side(0))
    for (const auto& columns : all_columns) {
      if (rows.places == 0 || columns.places == 0) continue;
      if (rows.count == 0 || columns.count == 0) {
        covers_all = false;
        continue;
      }
      ConvGeometry g{output_sizes[0],
                     output_sizes[1],
                     input_sizes[1],
                     params.groups,
                     rows.count,
                     columns.count,
                     1,
                     1,
                     params.dilation[0],
                     params.dilation[1],
                     rows.places,
                     columns.places,
                     {}};
      g.bfloat16 = values == Values::kWidened;
      if (values != Values::kPairs) g.algorithm = trained_algorithm(g);
      add({rows, columns, g}, params, output_sizes);
    }
}

void InputGradientParts::add(const InputGradientPart& part, const Conv2dParams& params,
                             at::IntArrayRef output_sizes) {
  const Overreach beyond = overreach(part.geometry);
  const auto last_read = [](const InputGradientPart::Phase& phase, int64_t dilation) {
    return phase.lowest + phase.places - 1 + (phase.count - 1) * dilation;
  };
  border.top = std::max(border.top, -part.rows.lowest);
  border.left = std::max(border.left, -part.columns.lowest);
  border.bottom = std::max(border.bottom,
                           last_read(part.rows, params.dilation[0]) + beyond.bottom - (output_sizes[2] - 1));
  border.right = std::max(border.right,
                          last_read(part.columns, params.dilation[1]) + beyond.right - (output_sizes[3] - 1));
  parts.push_back(part);
}

bool has_phases(const Conv2dParams& p) {
  for (int i = 0; i < 2; ++i)
    if (p.stride[i] > 1 && p.dilation[i] > 1) return false;
  return true;
}

at::Tensor swapped_groups(const at::Tensor& weight, int64_t groups) {
  const int64_t out = weight.size(0) / groups, in = weight.size(1);
  return weight.reshape({groups, out, in, weight.size(2), weight.size(3)})
      .transpose(1, 2)
      .reshape({groups * in, out, weight.size(2), weight.size(3)});
}

}  // namespace cnnfast::cpu
