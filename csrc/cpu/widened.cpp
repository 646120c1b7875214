#include "cpu/widened.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/bf16_table.h"
#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

// Threads take whole cache lines.
constexpr int64_t kShare = 64;

using Empty = decltype(output_empty);

bool is_plain_bfloat16(const at::Tensor& t) {
  return t.scalar_type() == at::kBFloat16 && t.layout() == at::kStrided && !t.is_conj() && !t.is_neg();
}

// Memory of another type with the strides of `t`, which has no gaps.
at::Tensor empty_like(const at::Tensor& t, at::ScalarType type, Empty& empty) {
  const auto options = t.options().dtype(type);
  const at::MemoryFormat format = t.suggest_memory_format();
  return t.is_contiguous(format) ? empty(t.sizes(), options, format) : at::empty_like(t, options);
}

// Distance of pixels where it is one for all pixels of all images, and channels are adjacent; else 0.
int64_t pixel_stride(const at::Tensor& t) {
  if (t.dim() != 4 || !channels_adjacent(t)) return 0;
  const int64_t images = t.size(0), height = t.size(2), width = t.size(3);
  const int64_t stride = width > 1    ? t.stride(3)
                         : height > 1 ? t.stride(2)
                         : images > 1 ? t.stride(0)
                                      : t.size(1);
  const bool rows_touch = height == 1 || t.stride(2) == stride * width;
  const bool images_touch = images == 1 || t.stride(0) == stride * width * height;
  return rows_touch && images_touch ? stride : 0;
}

at::Tensor widened_pixels(const at::Tensor& t, int64_t stride, Empty& empty) {
  const at::Tensor wide = empty(t.sizes(), t.options().dtype(at::kFloat), at::MemoryFormat::ChannelsLast);
  const int64_t channels = t.size(1);
  const uint16_t* from = bits_of(t);
  float* to = wide.data_ptr<float>();
  parallel_team(threads_for(t.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(t.numel() / channels, 1, thread, team);
    bf16_kernels().widen({from + begin * stride, stride}, {to + begin * channels, channels}, end - begin,
                         channels);
  });
  return wide;
}

at::Tensor widened_in(const at::Tensor& t, Empty& empty) {
  if (!t.defined() || t.scalar_type() != at::kBFloat16) return t;
  if (!is_plain_bfloat16(t) || t.numel() == 0) return t.to(at::kFloat);
  if (!t.is_non_overlapping_and_dense()) {
    const int64_t stride = pixel_stride(t);
    return stride > 0 ? widened_pixels(t, stride, empty) : t.to(at::kFloat);
  }
  const at::Tensor wide = empty_like(t, at::kFloat, empty);
  const uint16_t* from = bits_of(t);
  float* to = wide.data_ptr<float>();
  parallel_team(threads_for(t.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(t.numel(), kShare, thread, team);
    bf16_kernels().widen({from + begin, end - begin}, {to + begin, end - begin}, 1, end - begin);
  });
  return wide;
}

}  // namespace

bool takes_widened(const at::Tensor& input) { return is_plain_bfloat16(input) && input.numel() > 0; }

bool takes_widened(const at::Tensor& grad_output, std::initializer_list<at::Tensor> others) {
  return takes_widened(grad_output) && std::all_of(others.begin(), others.end(), is_plain_bfloat16);
}

at::Tensor widened(const at::Tensor& t) { return widened_in(t, output_empty); }

OptionalTensor widened(const OptionalTensor& t) { return present(t) ? OptionalTensor(widened(*t)) : t; }

OptionalTensors widened(const OptionalTensors& list) {
  OptionalTensors result;
  for (size_t i = 0; i < list.size(); ++i) result.push_back(widened(list.get(i)));
  return result;
}

at::Tensor widened_kept(const at::Tensor& t) { return widened_in(t, gradient_empty); }

OptionalTensor widened_kept(const OptionalTensor& t) {
  return present(t) ? OptionalTensor(widened_kept(*t)) : t;
}

std::vector<at::Tensor> widened_kept(at::TensorList list) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& t : list) result.push_back(widened_kept(t));
  return result;
}

at::Tensor rounded_to(at::ScalarType type, const at::Tensor& t) {
  if (type != at::kBFloat16 || !t.defined() || t.scalar_type() != at::kFloat) return t;
  if (t.numel() == 0 || !t.is_non_overlapping_and_dense()) return t.to(type);
  const at::Tensor narrow = empty_like(t, type, output_empty);
  const float* from = t.const_data_ptr<float>();
  auto* to = reinterpret_cast<uint16_t*>(narrow.data_ptr<at::BFloat16>());
  parallel_team(threads_for(t.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(t.numel(), kShare, thread, team);
    bf16_kernels().narrow({from + begin, end - begin}, {to + begin, end - begin}, 1, end - begin);
  });
  return narrow;
}

void write_images(const View& from, const at::Tensor& to) {
  if (to.numel() == 0) return;
  const ImageSize size = image_size(to);
  const bool narrow = to.scalar_type() == at::kBFloat16;
  const View16 to16 = narrow ? view16_of(to) : View16{};
  parallel_team(threads_for(to.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(size.images * size.height, 1, thread, team);
    if (!narrow) return copy_out(from, size, to.data_ptr<float>(), tensor_strides(to), begin, end);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      bf16_kernels().narrow({from.data + n * from.image + y * from.row, from.pixel},
                            {to16.data + n * to16.image + y * to16.row, to16.pixel}, size.width,
                            size.channels);
    }
  });
}

std::vector<at::Tensor> rounded_to(at::ScalarType type, std::vector<at::Tensor> list) {
  for (at::Tensor& t : list) t = rounded_to(type, t);
  return list;
}

}  // namespace cnnfast::cpu
