// Convolutions one behind the other on bfloat16 images, and a max pooling behind them, a few images at a
// time: what one hands to the next is read while it is in cache.
#pragma once
#include <optional>
#include <vector>

#include "ops/conv2d.h"
#include "ops/pool2d.h"

namespace cnnfast::cpu {

// act(conv(input, weight) + bias) into `output`, whose channels are adjacent. The input is the output of the
// convolution before it.
struct ChainedConv {
  at::Tensor input, weight;
  OptionalTensor bias;
  Conv2dParams params;
  Activation activation;
  at::Tensor output;
};

// Of the last convolution's output.
struct ChainedPool {
  Pool2dParams params;
  at::Tensor output;
};

// Runs the first stages of a chain, and says how many; 0 where one alone would run, or where pairs do not
// serve (cpu/paired_conv.h), there are few images, or weights are large beside a group of them. By sizes,
// never by the number of threads. Arguments must have passed check_conv2d and check_pool2d.
size_t paired_chain_into(const std::vector<ChainedConv>& chain, const std::optional<ChainedPool>& pool);

}  // namespace cnnfast::cpu
