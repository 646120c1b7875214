// The bytes of an image, decompressed.
#pragma once
#include <vector>

#include "gpu/triton/table.h"

namespace cnnfast::gpu {

// Ends with a zero byte, as PTX must. Throws DriverError where the bytes are damaged.
std::vector<char> unpack(const Image& image);

}  // namespace cnnfast::gpu
