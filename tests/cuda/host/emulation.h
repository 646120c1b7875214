// Enough of CUDA to run kernels on the host, one block at a time, in one thread of the operating system.
//
// Every thread of a block is a fibre with a stack of its own. A fibre runs until it waits (at a barrier, or
// in a shuffle of its warp) or ends; which one runs next is drawn by lot, so that a kernel that lacks a
// barrier sees memory that its neighbour has not written yet. Shared memory is filled with 0xff (NaN) before
// a block runs and is exactly as long as its type; global memory is reached through Global<T>, which counts
// what is read and written. The address sanitizer is told about the fibres.
//
// What is an error (message, then abort): threads that wait at different barriers, or that end while others
// wait; shuffles that not all threads of their mask take part in; accesses to vectors at odd addresses.
#pragma once
#define CNNFAST_EMULATION 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>

#define __global__ inline
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

constexpr unsigned kWarp = 32;

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Bytes read and written since the last launch began, of each piece of memory that was named.
struct Traffic {
  int64_t loaded = 0, stored = 0, loads = 0, stores = 0;
};
void name_memory(int64_t id, const void* begin, size_t bytes);
void forget_memory();
const std::map<int64_t, Traffic>& traffic();
void count_load(const void* address, size_t bytes);
void count_store(const void* address, size_t bytes);

// The counterpart of kernel<<<grid, threads>>>(...), in an order that follows from the seed.
void launch(dim3 grid, unsigned threads, uint64_t seed, const std::function<void()>& thread);
// The same for some blocks of the grid alone.
void launch_block(dim3 grid, dim3 block, unsigned threads, uint64_t seed,
                  const std::function<void()>& thread);

void* shared_memory(const void* key, size_t bytes, size_t alignment);
template <typename T>
T& block_shared() {
  static const char key = 0;
  static_assert(std::is_trivially_default_constructible_v<T>, "shared memory has no constructors");
  return *static_cast<T*>(shared_memory(&key, sizeof(T), alignof(T)));
}

void barrier(const char* file, int line);
// Gives `value` to the warp and returns what `source` gave, a lane of it.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, const char* file, int line);
unsigned ballot(unsigned mask, bool value, const char* file, int line);
unsigned lane();

template <typename T>
T exchange_as(unsigned mask, T value, unsigned source, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A lane beyond the warp leaves a shuffle's own value.
template <typename T>
T shuffle_down(unsigned mask, T value, unsigned delta, const char* file, int line) {
  return exchange_as(mask, value, lane() + delta < kWarp ? lane() + delta : lane(), file, line);
}

// One value of global memory.
template <typename T>
class Reference {
 public:
  explicit Reference(T* address) : address_(address) {}
  operator std::remove_const_t<T>() const {
    count_load(address_, sizeof(T));
    return *address_;
  }
  const Reference& operator=(std::remove_const_t<T> value) const {
    count_store(address_, sizeof(T));
    *address_ = value;
    return *this;
  }
  const Reference& operator=(const Reference& other) const {
    return *this = static_cast<std::remove_const_t<T>>(other);
  }

 private:
  T* address_;
};

// What a T* is on the device.
template <typename T>
class Global {
 public:
  Global() = default;
  Global(std::nullptr_t) {}
  Global(T* address) : address_(address) {}
  template <typename U, typename = std::enable_if_t<std::is_same_v<const U, T>>>
  Global(const Global<U>& other) : address_(other.raw()) {}
  explicit operator bool() const { return address_ != nullptr; }
  Global operator+(int64_t elements) const { return Global(address_ + elements); }
  Reference<T> operator[](int64_t element) const { return Reference<T>(address_ + element); }
  T* raw() const { return address_; }

 private:
  T* address_ = nullptr;
};

template <typename To, typename T>
To read_as(Global<T> address) {
  if (reinterpret_cast<uintptr_t>(address.raw()) % sizeof(To))
    fail("a vector of %zu bytes is read at an odd address", sizeof(To));
  count_load(address.raw(), sizeof(To));
  To value;
  std::memcpy(&value, address.raw(), sizeof(To));
  return value;
}

template <typename From, typename T>
void write_as(Global<T> address, const From& value) {
  if (reinterpret_cast<uintptr_t>(address.raw()) % sizeof(From))
    fail("a vector of %zu bytes is written at an odd address", sizeof(From));
  count_store(address.raw(), sizeof(From));
  std::memcpy(address.raw(), &value, sizeof(From));
}

template <typename T>
T atomic_add(Global<T> address, T value) {
  const T before = address[0];
  address[0] = before + value;
  return before;
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulation

#define __syncthreads() emulation::barrier(__FILE__, __LINE__)
#define __shfl_sync(mask, value, source) emulation::exchange_as(mask, value, source, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  emulation::exchange_as(mask, value, emulation::lane() ^ (bits), __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, delta) emulation::shuffle_down(mask, value, delta, __FILE__, __LINE__)
#define __ballot_sync(mask, value) emulation::ballot(mask, value, __FILE__, __LINE__)
#define atomicAdd(address, value) emulation::atomic_add(address, value)
