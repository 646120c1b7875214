// Tensors as a kernel sees them: a base pointer and a pixel stride (NHWC memory).
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

namespace cnnfast::gpu {

// Elements from one pixel to the next of an N x C x H x W tensor that lies in NHWC order, as channels_last
// tensors and channel slices of them do. Strides of dimensions of size 1 mean nothing.
std::optional<int64_t> pixel_stride(const at::Tensor& t);

struct NhwcTensor {
  at::Tensor tensor;
  int64_t stride;
};

// The tensor itself where it lies in NHWC order, else a channels_last copy.
NhwcTensor as_nhwc(const at::Tensor& t);

}  // namespace cnnfast::gpu
