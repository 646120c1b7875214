// Gradients of convolutions on bfloat16 tensors, a few images at a time: while they are in cache, the
// gradient before the activation is made, and gives the sums of the bias and the gradients of input and
// weight. So do those of convolutions one behind the other: what one hands to the one before it never leaves
// the cache.
#pragma once
#include <optional>
#include <vector>

#include "cpu/image.h"
#include "ops/conv_gradients.h"
#include "ops/pool2d.h"

namespace cnnfast::cpu {

// act(conv(input, weight) + bias) with its output; images are bfloat16. The input is the output of the
// convolution before it.
struct PairedStage {
  at::Tensor input, weight, output;
  Conv2dParams params;
  Activation activation;
  WantedConvGradients wanted;  // the input's of all but the first
};

struct PairedGradients {
  at::Tensor input, weight;  // undefined where not wanted; the input's is the first stage's
  std::vector<double> bias;
};

// Of one convolution where multiplies_pairs. Nothing where pairs do not serve, or where sizes (never the
// number of threads) are better served one gradient at a time: few images, or large weights.
std::optional<PairedGradients> paired_backward(const at::Tensor& grad_output, const PairedStage& stage);

// The same of one that going forward Winograd's algorithm serves better, but whose input has so few channels
// that it leaves vectors half empty, where products of pairs join pixels.
std::optional<PairedGradients> joined_backward(const at::Tensor& grad_output, const PairedStage& stage);

// Of the last convolutions of a chain, as many as are served so, from the gradient of what `pool`, if there
// is one, makes of the last one's output by max pooling; none where one stage alone would be.
std::vector<PairedGradients> paired_chain_backward(const at::Tensor& grad_output,
                                                   const std::vector<PairedStage>& chain,
                                                   const std::optional<Pool2dParams>& pool);

}  // namespace cnnfast::cpu
