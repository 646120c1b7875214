#include "gpu/nhwc.h"

namespace cnnfast::gpu {

std::optional<int64_t> pixel_stride(const at::Tensor& t) {
  const int64_t batch = t.size(0), channels = t.size(1), height = t.size(2), width = t.size(3);
  if (channels > 1 && t.stride(1) != 1) return std::nullopt;
  int64_t stride = channels;
  if (width > 1)
    stride = t.stride(3);
  else if (height > 1)
    stride = t.stride(2);
  else if (batch > 1)
    stride = t.stride(0);
  const bool rows_follow = height == 1 || t.stride(2) == stride * width;
  const bool images_follow = batch == 1 || t.stride(0) == stride * width * height;
  return rows_follow && images_follow ? std::optional(stride) : std::nullopt;
}

NhwcTensor as_nhwc(const at::Tensor& t) {
  if (const auto stride = pixel_stride(t)) return {t, *stride};
  return {t.contiguous(at::MemoryFormat::ChannelsLast), t.size(1)};
}

}  // namespace cnnfast::gpu
