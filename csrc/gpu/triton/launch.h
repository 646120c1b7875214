// Machine code into a device, and its launch.
#pragma once
#include <functional>
#include <string>

#include "gpu/triton/arguments.h"
#include "gpu/triton/driver.h"

namespace cnnfast::gpu {

struct DeviceFacts {
  int arch;  // 86 for sm_86
  int processors;
  int shared_bytes;  // at most for one program
  std::string name;
};

// Asked of the driver once per device. DriverError where that fails.
const DeviceFacts& device_facts(int device);

// The variant's code for a device: that of its very architecture, else of an older one with the same major
// number, else PTX that the driver compiles; nullptr and a reason where there is none or it needs too much
// shared memory.
const Image* image_for(const Variant& variant, const DeviceFacts& device, std::string* reason);

bool is_capturing(CuStream stream);

// Device memory for a kernel's scratch: bytes and alignment -> address, valid until the kernel has run.
using ScratchAllocator = std::function<void*(size_t bytes, size_t alignment)>;

struct Grid {
  unsigned x, y, z;
};

// Runs the kernel in the stream of a device, which is the current one. The code is loaded at the first launch
// and stays; several threads may call at once. DriverError where the code does not load or the launch fails.
void launch(const Variant& variant, const Image& image, Packed& arguments, Grid grid, int device,
            CuStream stream, const ScratchAllocator& allocate);

}  // namespace cnnfast::gpu
