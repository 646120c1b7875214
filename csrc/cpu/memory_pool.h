// Memory of large tensors that live for a step of training. The C library gives large blocks back to the
// system, and the next step gets them back as pages to be cleared, one by one (docs/performance.md).
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace cnnfast::cpu {

// As at::empty, but what is large comes from blocks that are kept when their tensors are gone: with those in
// use, twice as much as was in use at once, at most. CNNFAST_KEEP_MEMORY=0: as at::empty.
at::Tensor gradient_empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                          std::optional<at::MemoryFormat> format = std::nullopt);
// With the strides of `t`, as at::empty_like; of its own type or float32.
at::Tensor gradient_empty_like(const at::Tensor& t);
at::Tensor float_gradient_empty_like(const at::Tensor& t);
// As gradient_empty where gradients are recorded; else as at::empty: who only predicts gets no memory kept.
at::Tensor output_empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                        std::optional<at::MemoryFormat> format = std::nullopt);

// Gives back what is kept and not in use.
void release_kept_memory();

}  // namespace cnnfast::cpu
