// Runs csrc/cuda/bn_act.cuh on the host. Reads cases from standard input until its end (layout:
// bn_act_host.py), writes lanes, blocks and the output of each to standard output. Buffers are exactly as
// long as the data, so that the address sanitizer sees an access past their end.
#include <cstdio>
#include <cstdlib>

#include "cuda/bn_act.cuh"
#include "cuda/bn_act_launch.h"

namespace {

using namespace cnnfast::cuda;

struct Header {
  int64_t dtype, size, channels, activation, blocks, threads, seed, misalignment, has_weight, has_bias,
      has_residual;
  double eps;
};

template <typename T>
bool read(T* data, size_t count) {
  return std::fread(data, sizeof(T), count, stdin) == count;
}

template <typename T>
std::vector<T> read_vector(bool is_there, size_t misalignment, size_t count) {
  std::vector<T> data(is_there ? misalignment + count : 0);
  if (is_there && !read(data.data() + misalignment, count)) std::abort();
  return data;
}

template <typename T>
void run(const Header& header) {
  const size_t channels = header.channels, size = header.size, misalignment = header.misalignment;
  const auto mean = read_vector<float>(true, 0, channels), var = read_vector<float>(true, 0, channels);
  const auto weight = read_vector<float>(header.has_weight, 0, channels);
  const auto bias = read_vector<float>(header.has_bias, 0, channels);
  const auto input = read_vector<T>(true, misalignment, size);
  const auto residual = read_vector<T>(header.has_residual, misalignment, size);
  std::vector<T> output(misalignment + size);
  std::memset(static_cast<void*>(output.data()), 0xff, output.size() * sizeof(T));  // NaN in every type

  const BnActArgs<T> args{
      input.data() + misalignment,
      header.has_residual ? residual.data() + misalignment : nullptr,
      output.data() + misalignment,
      mean.data(),
      var.data(),
      header.has_weight ? weight.data() : nullptr,
      header.has_bias ? bias.data() : nullptr,
      header.size,
      static_cast<int32_t>(header.channels),
      static_cast<int32_t>(header.activation),
      static_cast<float>(header.eps),
  };
  constexpr int kLanes = kVectorBytes / sizeof(T);
  constexpr int kProcessors = 4;
  const int lanes = bn_act_lanes(args);
  // No blocks given: the launcher's own grid.
  const int64_t blocks = header.blocks ? header.blocks : bn_act_blocks(size, channels, lanes, kProcessors);
  const int64_t threads = header.blocks ? header.threads : kBlockThreads;
  host_cuda::launch(lanes == kLanes ? bn_act_forward<T, kLanes> : bn_act_forward<T, 1>, blocks, threads,
                    header.seed, args);
  const int64_t facts[] = {lanes, blocks};
  std::fwrite(facts, sizeof(int64_t), 2, stdout);
  std::fwrite(output.data() + misalignment, sizeof(T), size, stdout);
}

}  // namespace

int main() {
  Header header;
  while (read(&header, 1)) {
    if (header.dtype == 0) run<float>(header);
    if (header.dtype == 1) run<__half>(header);
    if (header.dtype == 2) run<__nv_bfloat16>(header);
  }
}
