// Images that an operator works on at once: what it copies of them on the way (with borders, or widened from
// bfloat16) then takes a bounded part of memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "cpu/image.h"

namespace cnnfast::cpu {

class ImageGroups {
 public:
  // Of a convolution whose copies take `image_floats` per image. Weights are packed or transformed anew for
  // every group: that should be little beside its images. Widened images are twice as large as what they come
  // from: of those there may be fewer. By sizes alone, never by the number of threads.
  ImageGroups(int64_t images, int64_t image_floats, int64_t weight_floats, bool widens) : images_(images) {
    const int64_t share = widens ? kWidenedWeightShare : kWeightShare;
    const int64_t floats = std::max(kGroupFloats, share * weight_floats);
    const int64_t groups =
        std::clamp<int64_t>((images * image_floats + floats - 1) / floats, 1, std::max<int64_t>(images, 1));
    step_ = std::max<int64_t>(1, (images + groups - 1) / groups);
  }

  // Of the first group; only the last one may have fewer.
  int64_t step() const { return step_; }
  // body(first image, images of the group)
  template <class Body>
  void each(Body&& body) const {
    for (int64_t first = 0; first < images_; first += step_) body(first, std::min(step_, images_ - first));
  }

 private:
  static constexpr int64_t kGroupFloats = 512 * 1024, kWeightShare = 12, kWidenedWeightShare = 4;
  int64_t images_, step_;
};

inline at::Tensor images_at(const at::Tensor& t, int64_t first, int64_t count) {
  return t.size(0) == count ? t : t.narrow(0, first, count);
}

// The values of an image, of all its channels, in memory with a border around it.
inline int64_t image_values(at::IntArrayRef sizes, const Border& b = {}) {
  return sizes[1] * (sizes[2] + b.top + b.bottom) * (sizes[3] + b.left + b.right);
}

}  // namespace cnnfast::cpu
