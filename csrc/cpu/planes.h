// Channels_last copies of images whose planes lie one behind the other.
#pragma once
#include <ATen/core/Tensor.h>

namespace cnnfast::cpu {

// t.contiguous(ChannelsLast), for any tensor; float32 and bfloat16 images of several channels by a kernel.
at::Tensor channels_last_copy(const at::Tensor& t);

}  // namespace cnnfast::cpu
