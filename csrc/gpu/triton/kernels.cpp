#include "gpu/triton/kernels.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <limits>

#include "gpu/stream.h"

namespace cnnfast::gpu {
namespace {

alignas(16) const char some_memory[16] = {};

}  // namespace

const void* const kSomeAddress = some_memory;

bool has_kernels(std::string* reason) {
  if (table().count == 0)
    *reason = "this build has no Triton kernels (CNNFAST_TRITON_AOT=1 builds them in)";
  else
    *reason = find_driver().driver ? "" : find_driver().reason;
  return reason->empty();
}

std::vector<Kernel> find_kernels(const KernelCall& call, int device, size_t most, std::string* reason) {
  struct Found {
    Kernel kernel;
    double clocks;
  };
  std::vector<Found> found;
  *reason = "this build has no Triton kernel " + std::string(call.kernel);
  size_t nearest = 0;  // parameters that fitted before the one of the reason
  const DeviceFacts& facts = device_facts(device);
  for (size_t i = 0; i < table().count; ++i) {
    const Variant& variant = table().variants[i];
    if (variant.kernel != call.kernel) continue;
    if (const auto problem = misfit(variant, call.arguments(variant))) {
      if (problem->position < nearest) continue;
      nearest = problem->position;
      *reason =
          "no Triton kernel of this build fits; of " + std::string(variant.name) + ", " + problem->reason;
    } else if (call.programs(variant) > std::numeric_limits<int32_t>::max()) {
      nearest = variant.parameter_count;
      *reason = "the result has more tiles than a grid can have";
    } else if (const Image* image = image_for(variant, facts, reason); !image) {
      nearest = variant.parameter_count;
    } else {
      found.push_back({{&variant, image}, call.clocks(variant)});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Found& l, const Found& r) { return l.clocks < r.clocks; });
  if (!found.empty()) reason->clear();
  if (found.size() > most) found.resize(most);
  std::vector<Kernel> kernels;
  for (const Found& one : found) kernels.push_back(one.kernel);
  return kernels;
}

bool takes(const Variant& variant, std::string_view tensor) {
  for (size_t i = 0; i < variant.parameter_count; ++i)
    if (variant.parameters[i].name == tensor) return variant.parameters[i].role == Role::kPassed;
  return false;
}

void run_kernel(const Kernel& kernel, const Arguments& arguments, int64_t programs, const at::Tensor& like) {
  const c10::DeviceGuard guard(like.device());
  Packed packed(*kernel.variant, arguments);
  // They stay until the kernel is in the stream: the allocator gives memory back in the stream's order.
  std::vector<at::Tensor> scratch;
  const auto allocate = [&](size_t bytes, size_t alignment) {
    scratch.push_back(at::empty({static_cast<int64_t>(bytes + alignment)}, like.options().dtype(at::kByte)));
    const auto address = reinterpret_cast<uintptr_t>(scratch.back().mutable_data_ptr());
    return reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
  };
  launch(*kernel.variant, *kernel.image, packed, {static_cast<unsigned>(programs), 1, 1}, ordinal_of(like),
         current_stream(like.device()), allocate);
}

}  // namespace cnnfast::gpu
