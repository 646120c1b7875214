// From a call's arguments to the kernels of the table that serve them, and to a launch.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include <string>
#include <vector>

#include "gpu/triton/launch.h"

namespace cnnfast::gpu {

struct Kernel {
  const Variant* variant;
  const Image* image;
};

// What a call asks of a kernel. Arguments and numbers may depend on the variant. Tensors that do not exist
// yet, such as results, are passed as kSomeAddress: any that an allocator gives.
struct KernelCall {
  std::string_view kernel;
  c10::function_ref<Arguments(const Variant&)> arguments;
  c10::function_ref<int64_t(const Variant&)> programs;
  c10::function_ref<double(const Variant&)> clocks;  // modelled; only their order matters
};
extern const void* const kSomeAddress;

// Whether there can be any for a device of this kind; else the reason in words.
bool has_kernels(std::string* reason);
// The kernels that serve the call on a device, at most `most`, best first by the model, or none and the
// reason.
std::vector<Kernel> find_kernels(const KernelCall& call, int device, size_t most, std::string* reason);

// Whether the kernel was compiled for a tensor of this name.
bool takes(const Variant& variant, std::string_view tensor);

// In the current stream of `like`'s device. DriverError where the code does not load or the launch fails.
void run_kernel(const Kernel& kernel, const Arguments& arguments, int64_t programs, const at::Tensor& like);

inline int ordinal_of(const at::Tensor& t) { return t.is_cuda() ? t.device().index() : 0; }

}  // namespace cnnfast::gpu
