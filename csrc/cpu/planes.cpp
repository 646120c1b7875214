#include "cpu/planes.h"

#include <ATen/Functions.h>

#include "cpu/bf16_table.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// With few channels or pixels most of a tile would be empty.
constexpr int64_t kLeast = 8;
// Pixels that a thread takes at a time, a multiple of every tile's.
constexpr int64_t kPixels = 64;

bool serves(const at::Tensor& t) {
  return t.dim() == 4 && t.is_cpu() && (is_plain_float(t) || takes_widened(t)) && t.size(1) >= kLeast &&
         t.size(2) * t.size(3) >= kLeast && t.stride(3) == 1 && t.stride(2) == t.size(3) &&
         !t.is_contiguous(at::MemoryFormat::ChannelsLast);
}

template <class T>
void copy_images(const at::Tensor& t, T* to, const T* from,
                 void (*kernel)(const PlanesCall<T>&, int64_t, int64_t)) {
  const int64_t channels = t.size(1), pixels = t.size(2) * t.size(3);
  const int64_t chunks = (pixels + kPixels - 1) / kPixels;
  parallel_team(threads_for(t.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(t.size(0) * chunks, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / chunks, first = unit % chunks * kPixels;
      kernel({from + image * t.stride(0), t.stride(1), channels, pixels, to + image * channels * pixels},
             first, std::min(pixels, first + kPixels));
    }
  });
}

}  // namespace

at::Tensor channels_last_copy(const at::Tensor& t) {
  if (!serves(t)) return t.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor made = at::empty(t.sizes(), t.options(), at::MemoryFormat::ChannelsLast);
  if (t.scalar_type() == at::kFloat)
    copy_images(t, made.data_ptr<float>(), t.const_data_ptr<float>(), kernels().pixels_of_planes);
  else
    copy_images(t, reinterpret_cast<uint16_t*>(made.data_ptr<at::BFloat16>()),
                reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>()),
                bf16_kernels().pixels_of_planes);
  return made;
}

}  // namespace cnnfast::cpu
