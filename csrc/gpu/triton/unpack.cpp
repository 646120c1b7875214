#include "gpu/triton/unpack.h"

#include "gpu/triton/driver.h"

#ifdef CNNFAST_TRITON_AOT
#include <zlib.h>
#endif

namespace cnnfast::gpu {

std::vector<char> unpack([[maybe_unused]] const Image& image) {
#ifdef CNNFAST_TRITON_AOT
  std::vector<char> code(image.raw_bytes + 1, '\0');
  uLongf size = image.raw_bytes;
  const int result = uncompress(reinterpret_cast<Bytef*>(code.data()), &size, table().blob + image.offset,
                                static_cast<uLong>(image.bytes));
  if (result != Z_OK || size != image.raw_bytes)
    throw DriverError("the Triton kernels in this library are damaged (zlib: " + std::to_string(result) +
                      ")");
  return code;
#else
  throw DriverError("this library was built without Triton kernels");
#endif
}

}  // namespace cnnfast::gpu
