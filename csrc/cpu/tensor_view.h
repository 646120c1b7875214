// Tensors as the images that kernels read: NHWC, channels adjacent, any image, row and pixel stride.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/image.h"
#include "cpu/kernel_table.h"

namespace cnnfast::cpu {

// Whether the float32 kernels take this tensor.
bool is_plain_float(const at::Tensor& t);

// The sizes of a check function, which here are numbers.
std::vector<int64_t> concrete(const std::vector<c10::SymInt>& sizes);

ImageSize image_size(const at::Tensor& t);
TensorStrides tensor_strides(const at::Tensor& t);

// A view of a tensor whose channels are adjacent. Strides of sides of length one, which torch leaves open,
// are set.
View view_of(const at::Tensor& t);
bool channels_adjacent(const at::Tensor& t);
// Itself, or a channels_last copy where they are not.
at::Tensor images_of(const at::Tensor& t);

// Image rows [row_begin, row_end) over all images, of a bfloat16 tensor whose channels are adjacent.
void widen_rows(const at::Tensor& from, ImageSize size, View to, int64_t row_begin, int64_t row_end);

// The tensor in memory with `border` zeros around every image, as a view of the first pixel inside the
// border; a bfloat16 one widened. Keeps what it allocates in `storage`; returns the tensor's own memory where
// nothing has to be copied.
View with_border(const at::Tensor& t, Border border, at::Tensor& storage);
// The same for a step of training (cpu/memory_pool.h).
View with_border_kept(const at::Tensor& t, Border border, at::Tensor& storage);

}  // namespace cnnfast::cpu
