// Element offsets above 2^31: the last blocks of a grid over 2^31 + 2056 float16 numbers, in memory that is
// reserved but touched only at its end. Returns 0 where these blocks compute what they should.
#include <sys/mman.h>

#include <cstdio>

#include "cuda/bn_act.cuh"

namespace {

using namespace cnnfast::cuda;

constexpr int64_t kChannels = 8;
constexpr int64_t kTail = 2048 + kChannels;  // one whole block of 256 threads with 8 lanes, and one pack
constexpr int64_t kSize = (int64_t{1} << 31) + kTail;

__half* reserve() {
  void* memory = mmap(nullptr, kSize * sizeof(__half), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<__half*>(memory);
}

}  // namespace

int main() {
  __half* input = reserve();
  __half* output = reserve();
  if (!input || !output) {
    std::fputs("the memory cannot be reserved\n", stderr);
    return 2;
  }
  float mean[kChannels] = {}, var[kChannels], bias[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    var[c] = 1.0f;
    bias[c] = static_cast<float>(c);
  }
  for (int64_t i = kSize - kTail; i < kSize; ++i) input[i] = __float2half_rn(static_cast<float>(i % 1000));

  const BnActArgs<__half> args{input, nullptr, output, mean, var, nullptr, bias, kSize, kChannels, 0, 0.0f};
  const unsigned blocks = (kSize / 8 + kBlockThreads - 1) / kBlockThreads;
  for (unsigned block : {blocks - 2, blocks - 1}) {
    host_cuda::run_block(bn_act_forward<__half, 8>, blocks, kBlockThreads, block, args);
  }
  for (int64_t i = kSize - kTail; i < kSize; ++i) {
    const float wanted = static_cast<float>(i % 1000 + i % kChannels);
    if (__half2float(output[i]) != wanted) {
      std::fprintf(stderr, "element %lld is %g, not %g\n", static_cast<long long>(i), __half2float(output[i]),
                   wanted);
      return 1;
    }
  }
  return 0;
}
