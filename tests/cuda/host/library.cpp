// What tests ask of the library that runs csrc/cuda on the host (tests/gpu/host_half.py).
#include <ATen/cuda/CUDAEvent.h>

#include "emulation.h"

#define HOST extern "C" __attribute__((visibility("default")))

// Counts bytes that kernels read from and write to a tensor's memory from now on.
HOST void host_watch(int64_t id, const void* begin, int64_t bytes) {
  emulation::name_memory(id, begin, static_cast<size_t>(bytes));
}
HOST void host_forget() { emulation::forget_memory(); }
HOST int64_t host_loaded(int64_t id) {
  const auto found = emulation::traffic().find(id);
  return found == emulation::traffic().end() ? 0 : found->second.loaded;
}
HOST int64_t host_stored(int64_t id) {
  const auto found = emulation::traffic().find(id);
  return found == emulation::traffic().end() ? 0 : found->second.stored;
}
HOST int host_streams() { return c10::cuda::used(); }
HOST int host_joined() { return at::cuda::joined(); }
