// Tensors as the kernels take them: which ones they serve, where pixels lie, types, the device's size.
#pragma once
#include <ATen/core/Tensor.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda/layout.h"
#include "ops/common.h"

namespace cnnfast::cuda {

// A CUDA tensor of four dimensions in one of the three types of the kernels, small enough for their numbers;
// all else runs by ATen.
bool served(const at::Tensor& images);
// Absent tensors, and those that are served and of the type of `images`.
bool served_with(const at::Tensor& images, const OptionalTensor& other);

// The tensor itself where its pixels lie at one distance with adjacent channels; else a copy.
at::Tensor with_pixels(const at::Tensor& images);
// The distance of its pixels in elements, of a tensor that with_pixels leaves as it is; 0: it would not.
int64_t pixel_distance(const at::Tensor& images);

inline int64_t pixel_count(const at::Tensor& images) {
  return images.size(0) * images.size(2) * images.size(3);
}

template <typename T>
Image<const T> image_of(const at::Tensor& t) {
  if (!t.defined()) return {nullptr, 0};
  return {static_cast<const T*>(t.const_data_ptr()), pixel_distance(t)};
}

template <typename T>
Image<T> target_of(const at::Tensor& t) {
  if (!t.defined()) return {nullptr, 0};
  return {static_cast<T*>(t.mutable_data_ptr()), pixel_distance(t)};
}

// body(T()) with the kernels' name of the type.
template <typename Body>
auto by_type(at::ScalarType type, Body&& body) {
  if (type == at::kHalf) return body(__half());
  if (type == at::kBFloat16) return body(__nv_bfloat16());
  return body(float());
}

// Multiprocessors of the current device.
int64_t processors();
cudaStream_t current_stream();

// One number per channel in adjacent float32, or undefined.
at::Tensor in_float(const OptionalTensor& per_channel);
inline const float* floats(const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; }
inline float* float_target(const at::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
}

at::Tensor empty_images(at::IntArrayRef sizes, const at::Tensor& like);
at::Tensor empty_floats(int64_t count, const at::Tensor& like);

// Whether the kernels have the activation; the others run by ATen behind them or in the composites.
bool has_kernel(const Activation& activation);

}  // namespace cnnfast::cuda
