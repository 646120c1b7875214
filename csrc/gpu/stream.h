// Streams and times of a tensor's device through torch's own device interface: no CUDA toolkit is needed. On
// other devices than CUDA there are no streams and times are the clock's.
#pragma once
#include <c10/core/Device.h>

#include <functional>

namespace cnnfast::gpu {

// The current stream as the driver knows it; nullptr (the default stream) on devices without streams.
void* current_stream(c10::Device device);

// Least milliseconds of several calls, after one that warms up, in the device's current stream.
double milliseconds(c10::Device device, const std::function<void()>& call);

}  // namespace cnnfast::gpu
