#include "gpu/backends.h"

#include <ATen/Context.h>

#include "gpu/triton/launch.h"

namespace cnnfast::gpu {

bool may_measure(c10::Device device) {
  if (at::globalContext().deterministicAlgorithms()) return false;
  return !find_driver().driver || !is_capturing(current_stream(device));
}

std::string why_no_cuda(bool built) {
  return built ? "" : "this build has no CUDA kernels (no nvcc, or CNNFAST_CUDA=0)";
}

}  // namespace cnnfast::gpu
