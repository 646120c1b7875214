// Small kernels, right ones and broken ones, that test the emulation itself. The argument names one of them.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/access.cuh"
#include "emulation.h"

namespace {

using namespace cnnfast::cuda;

constexpr unsigned kThreads = 64;

struct Row {
  float values[kThreads];
};

// Every thread reads what its neighbour has written, in two rounds.
template <bool kFirst, bool kSecond>
void rotate(Global<float> out) {
  Row& row = block_shared<Row>();
  row.values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kFirst) __syncthreads();
  const float from_right = row.values[(threadIdx.x + 1) % kThreads];
  if (kSecond) __syncthreads();
  row.values[threadIdx.x] = from_right;
  __syncthreads();
  out[threadIdx.x] = row.values[(threadIdx.x + 1) % kThreads];
}

template <bool kFirst, bool kSecond>
bool rotates(uint64_t seed) {
  std::vector<float> out(kThreads, NAN);
  emulation::launch(dim3(1), kThreads, seed, [&] { rotate<kFirst, kSecond>(out.data()); });
  for (unsigned i = 0; i < kThreads; ++i)
    if (out[i] != static_cast<float>((i + 2) % kThreads)) return false;
  return true;
}

// Prints how many of 50 schedules give the right result.
template <bool kFirst, bool kSecond>
void count_rotations() {
  int right = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) right += rotates<kFirst, kSecond>(seed);
  std::printf("%d\n", right);
}

void print_sums(float (*sum)(unsigned lane)) {
  std::vector<float> out(kThreads, NAN);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    emulation::launch(dim3(3), kThreads, seed, [&] {
      const float value = sum(threadIdx.x);
      if (threadIdx.x % 32 == 0) Global<float>(out.data())[threadIdx.x / 32] = value;
    });
    if (out[0] != 31 * 32 / 2 || out[1] != 32 * 32 + 31 * 32 / 2) {
      std::puts("wrong");
      return;
    }
  }
  std::puts("right");
}

float sum_by_xor(unsigned thread) {
  float value = static_cast<float>(thread);
  for (unsigned bit = 16; bit; bit /= 2) value += __shfl_xor_sync(0xffffffffu, value, bit);
  return value;
}

float sum_by_down(unsigned thread) {
  float value = static_cast<float>(thread);
  for (unsigned delta = 16; delta; delta /= 2) value += __shfl_down_sync(0xffffffffu, value, delta);
  return value;
}

float sum_by_ballot(unsigned thread) {
  float value = 0;
  for (unsigned bit = 0; bit < 6; ++bit) {
    const unsigned votes = __ballot_sync(0xffffffffu, thread >> bit & 1);
    value += static_cast<float>(__builtin_popcount(votes)) * static_cast<float>(1u << bit);
  }
  return value;
}

void launch_one(const std::function<void()>& thread) { emulation::launch(dim3(1), kThreads, 1, thread); }

}  // namespace

int main(int, char** arguments) {
  const std::string name = arguments[1];
  std::vector<float> memory(kThreads, 0.0f);
  const Global<float> global(memory.data());
  if (name == "barriers") count_rotations<true, true>();
  if (name == "first_barrier_missing") count_rotations<false, true>();
  if (name == "second_barrier_missing") count_rotations<true, false>();
  if (name == "xor") print_sums(sum_by_xor);
  if (name == "down") print_sums(sum_by_down);
  if (name == "ballot") print_sums(sum_by_ballot);
  if (name == "atomics") {
    launch_one([&] { atomicAdd(global, 1.0f); });
    std::printf("%g\n", memory[0]);
  }
  if (name == "traffic") {
    emulation::name_memory(0, memory.data(), memory.size() * sizeof(float));
    launch_one([&] { global[threadIdx.x] = global[0] + 1.0f; });
    const emulation::Traffic t = emulation::traffic().at(0);
    std::printf("%lld %lld %lld %lld\n", static_cast<long long>(t.loaded), static_cast<long long>(t.stored),
                static_cast<long long>(t.loads), static_cast<long long>(t.stores));
  }
  // From here on every kernel is broken, and the process must not end well.
  if (name == "divergent_barrier")
    launch_one([] {
      if (threadIdx.x < 40) __syncthreads();
    });
  if (name == "different_barriers")
    launch_one([] {
      if (threadIdx.x < 40)
        __syncthreads();
      else
        __syncthreads();
    });
  if (name == "lane_missing")
    launch_one([] {
      if (threadIdx.x % 32 != 5) __shfl_xor_sync(0xffffffffu, 1.0f, 1u);
    });
  if (name == "mask_without_itself") launch_one([] { __shfl_xor_sync(0x0000ffffu, 1.0f, 1u); });
  if (name == "odd_vector") launch_one([&] { load_as<Vector<float>, float>(global + 1); });
  if (name == "global_overflow") launch_one([&] { global[threadIdx.x + 1] = 1.0f; });
  if (name == "shared_overflow")
    launch_one([] {
      float* values = block_shared<Row>().values;
      *(values + threadIdx.x + 1) = 1.0f;
    });
  if (name == "stack_overflow_on_a_fibre")
    launch_one([] {
      float values[4] = {};
      float* volatile beyond = values + 4;
      *beyond = 1.0f;
    });
  return 0;
}
