// Arguments of the kernels of batch normalisation. Plain C++.
#pragma once
#include "activation.h"
#include "cuda/layout.h"

namespace cnnfast::cuda {

// Blocks of a kernel that a processor holds at once, by their registers.
constexpr int kStatisticsBlocks = 3, kForwardBlocks = 2, kBackwardBlocks = 2;

// Floats of workspace: two partial results per block and column, and a few numbers per channel.
inline int64_t partial_floats(const Layout& l) { return int64_t{l.row_blocks} * l.columns; }
inline int64_t statistics_floats(const Layout& l) { return 2 * partial_floats(l) + l.channels; }

// Also the end of a convolution: without mean and var they are 0 and 1 (and eps is not added).
template <typename T>
struct ForwardArgs {
  Image<const T> input, residual;               // residual: may be absent
  Image<T> output;                              // may be the input or the residual themselves
  Global<uint8_t> mask;                         // may be absent; lanes.cuh says what is where
  Global<const float> mean, var, weight, bias;  // absent: 0, no scaling, 1, 0
  float eps;
  Activation activation;
  Layout layout;
};

// Where the activation's gradient comes from.
enum class Source {
  kNone,    // there is no activation
  kMask,    // ReLU: the bits of the forward pass
  kResult,  // what the activation gave
  kInput,   // the activation's result, computed again from x: for blocks that do not keep it
};

template <typename T>
struct ReduceArgs {
  Image<const T> grad, input;
  Image<const T> result;       // Source::kResult
  Global<const uint8_t> mask;  // Source::kMask
  Image<T> grad_behind;        // may be absent: the gradient behind the activation, which is the residual's
  Image<T> accumulate;         // may be absent: scale * that gradient is added to it
  Global<const float> mean, var, weight, bias;  // all but the mean: Source::kInput and accumulate alone
  float eps;
  Activation activation;
  Layout layout;
  Global<float> sum, product;  // [row_blocks, columns]: of the gradient, and of it times x - mean
};

// The whole backward pass. Pointers that are absent are null; gradients of parameters are [channels].
template <typename T>
struct BackwardCall {
  Source source;  // all but kInput
  Image<const T> grad, input, result;
  Global<const uint8_t> mask;
  Image<T> grad_input, grad_residual;
  Global<const float> mean, var, weight;
  Global<float> grad_weight, grad_bias, grad_mean, grad_var;
  float eps;
  Activation activation;
  bool batch_statistics;
  Layout layout;
  float* workspace;  // backward_floats, aligned to 16 bytes
};

inline int64_t backward_floats(const Layout& l) { return 2 * partial_floats(l) + 3 * int64_t{l.channels}; }

}  // namespace cnnfast::cuda
