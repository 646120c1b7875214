// Gradients of a convolution and the pooling behind it in one pass over memory: the gradient between them is
// made, and used up, a few rows at a time.
#pragma once
#include <optional>

#include "ops/inception.h"

namespace cnnfast::cpu {

// From the pooling's gradient those of the convolution before it, where its images are bfloat16 and its
// products float32; the pooling is a stage without an activation. Nothing where one gradient at a time serves
// better. By sizes, never by the number of threads.
std::optional<ConvGradients> pooled_backward(const at::Tensor& grad_output, const StageValues& conv,
                                             const StageValues& pool);

}  // namespace cnnfast::cpu
