// Groups of images that one thread takes through several steps while what is between them stays in cache.
#pragma once
#include <algorithm>
#include <cstdint>

namespace cnnfast::cpu {

// Of the largest value between two steps. Fewer groups are no work for several threads.
constexpr int64_t kPairedGroupBytes = 256 * 1024, kLeastGroups = 8;

// How many of so many images a group has, if the largest value takes so many bytes an image.
inline int64_t images_of_group(int64_t images, int64_t image_bytes) {
  return std::clamp<int64_t>(kPairedGroupBytes / image_bytes, 1, std::max<int64_t>(1, images));
}

}  // namespace cnnfast::cpu
