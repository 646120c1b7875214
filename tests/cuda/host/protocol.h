// What the host programs of the kernel tests have in common: calls come from standard input, answers go to
// standard output (layout: host_program.py). Buffers are exactly as long as their data, so that the address
// sanitizer sees an access past their end; outputs are full of 0xff (NaN) beforehand.
#pragma once
#include <cstdio>
#include <string>
#include <vector>

#include "emulation.h"

namespace protocol {

struct Buffer {
  std::vector<char> memory;
  size_t offset = 0, bytes = 0;
  bool present = false, output = false;

  template <typename T>
  T* as() {
    return present ? reinterpret_cast<T*>(memory.data() + offset) : nullptr;
  }
};

struct Call {
  std::string name;
  uint64_t seed = 0;
  std::vector<int64_t> ints;
  std::vector<double> doubles;
  std::vector<Buffer> buffers;
};

template <typename T>
bool read(T* data, size_t count) {
  return std::fread(data, sizeof(T), count, stdin) == count;
}

template <typename T>
T need() {
  T value;
  if (!read(&value, 1)) emulation::fail("the call ends early");
  return value;
}

template <typename T>
std::vector<T> need_list() {
  std::vector<T> values(need<int64_t>());
  if (!read(values.data(), values.size())) emulation::fail("the call ends early");
  return values;
}

inline bool next_call(Call& call) {
  int64_t letters;
  if (!read(&letters, 1)) return false;
  call.name.resize(letters);
  if (!read(call.name.data(), letters)) emulation::fail("the call ends early");
  call.seed = need<uint64_t>();
  call.ints = need_list<int64_t>();
  call.doubles = need_list<double>();
  call.buffers = std::vector<Buffer>(need<int64_t>());
  emulation::forget_memory();
  for (size_t i = 0; i < call.buffers.size(); ++i) {
    Buffer& buffer = call.buffers[i];
    buffer.present = need<int64_t>();
    buffer.output = need<int64_t>();
    buffer.offset = need<int64_t>();
    buffer.bytes = need<int64_t>();
    if (!buffer.present) continue;
    buffer.memory.assign(buffer.offset + buffer.bytes, static_cast<char>(0xff));
    const bool filled = need<int64_t>();
    if (filled && !read(buffer.memory.data() + buffer.offset, buffer.bytes))
      emulation::fail("the call ends early");
    emulation::name_memory(static_cast<int64_t>(i), buffer.memory.data() + buffer.offset, buffer.bytes);
  }
  return true;
}

// The outputs in their order, then what was read and written of every buffer: bytes, accesses.
inline void answer(Call& call) {
  for (Buffer& buffer : call.buffers)
    if (buffer.present && buffer.output) std::fwrite(buffer.as<char>(), 1, buffer.bytes, stdout);
  for (size_t i = 0; i < call.buffers.size(); ++i) {
    const auto found = emulation::traffic().find(static_cast<int64_t>(i));
    const emulation::Traffic t = found == emulation::traffic().end() ? emulation::Traffic() : found->second;
    const int64_t counts[] = {t.loaded, t.stored, t.loads, t.stores};
    std::fwrite(counts, sizeof(int64_t), 4, stdout);
  }
}

}  // namespace protocol
