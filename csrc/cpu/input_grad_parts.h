// The gradient of a convolution's input as stride-1 convolutions of the output's gradient with turned parts
// of the weight, one for every phase of the strides.
#pragma once
#include <vector>

#include "cpu/conv_geometry.h"
#include "cpu/image.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

struct InputGradientPart {
  // Along one side: input places first, first + step, ... read `count` output places each, the first of them
  // from `lowest` on; kernel places last, last - stride, ... belong to them.
  struct Phase {
    int64_t first, places, lowest, count, last;
  };
  Phase rows, columns;
  ConvGeometry geometry;
};

struct InputGradientParts {
  // What is multiplied: pairs of bfloat16, in direct convolutions alone; floats; floats that were bfloat16.
  enum class Values { kPairs, kFloat, kWidened };
  InputGradientParts(at::IntArrayRef input_sizes, at::IntArrayRef weight_sizes, const Conv2dParams& params,
                     at::IntArrayRef output_sizes, Values values);
  // Of gradients of such an input by products of floats.
  static Values of(const at::Tensor& input) {
    return input.scalar_type() == at::kBFloat16 ? Values::kWidened : Values::kFloat;
  }

  std::vector<InputGradientPart> parts;
  bool covers_all = true;  // every place of the input belongs to a part
  Border border;           // zeros that must lie around the output's gradient

 private:
  void add(const InputGradientPart& part, const Conv2dParams& params, at::IntArrayRef output_sizes);
};

// Strides and dilations above 1 on the same side have no such phases.
bool has_phases(const Conv2dParams& params);

// In the order of a convolution from outputs to inputs: I x (O / groups) x height x width.
at::Tensor swapped_groups(const at::Tensor& weight, int64_t groups);

}  // namespace cnnfast::cpu
