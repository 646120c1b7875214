#include "cuda/tensors.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

namespace cnnfast::cuda {

namespace {

#ifdef CNNFAST_EMULATION
bool on_device(const at::Tensor& t) { return t.is_cpu(); }  // the host stands for a device
#else
bool on_device(const at::Tensor& t) { return t.is_cuda(); }
#endif

}  // namespace

bool served(const at::Tensor& images) {
  const auto type = images.scalar_type();
  const bool has_type = type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
  return on_device(images) && images.layout() == at::kStrided && images.dim() == 4 && has_type &&
         images.size(1) <= kMostChannels && pixel_count(images) <= INT32_MAX;
}

bool served_with(const at::Tensor& images, const OptionalTensor& other) {
  return !present(other) || (served(*other) && other->scalar_type() == images.scalar_type());
}

int64_t pixel_distance(const at::Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  if (sizes[1] > 1 && strides[1] != 1) return 0;
  // Strides of sides of one pixel say nothing.
  const int64_t pixel = sizes[3] > 1   ? strides[3]
                        : sizes[2] > 1 ? strides[2]
                        : sizes[0] > 1 ? strides[0]
                                       : sizes[1];
  const bool rows = sizes[2] <= 1 || strides[2] == sizes[3] * pixel;
  const bool images = sizes[0] <= 1 || strides[0] == sizes[2] * sizes[3] * pixel;
  return rows && images && pixel >= sizes[1] ? pixel : 0;
}

at::Tensor with_pixels(const at::Tensor& images) {
  if (pixel_distance(images)) return images;
  return at::empty(images.sizes(), images.options(), at::MemoryFormat::ChannelsLast).copy_(images);
}

int64_t processors() {
  int device = 0, count = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream(); }

at::Tensor in_float(const OptionalTensor& per_channel) {
  return present(per_channel) ? per_channel->to(at::kFloat).contiguous() : at::Tensor();
}

at::Tensor empty_images(at::IntArrayRef sizes, const at::Tensor& like) {
  return at::empty(sizes, like.options(), at::MemoryFormat::ChannelsLast);
}

at::Tensor empty_floats(int64_t count, const at::Tensor& like) {
  return at::empty({count}, like.options().dtype(at::kFloat));
}

bool has_kernel(const Activation& activation) {
  switch (activation.kind) {
    case Activation::kGELU:
    case Activation::kGELUTanh:
    case Activation::kMish:
      return false;
    default:
      return true;
  }
}

}  // namespace cnnfast::cuda
