// A panel of short pairs (short_pairs.h) made of whole ones.
#pragma once
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cpu/bf16_table.h"

namespace cnnfast::cpu {

class ShortPanelWriter {
 public:
  // pairs: `blocks` blocks of `halves` halves each.
  ShortPanelWriter(const uint16_t* pairs, int64_t halves, int64_t blocks)
      : pairs_(pairs), halves_(halves), blocks_(blocks), stored_(static_cast<size_t>(blocks)) {
    choose_exponents();
    for (int64_t b = 0; b < blocks; ++b)
      stored_[b] = std::any_of(block(b), block(b + 1),
                               [&](uint16_t value) { return code_[exponent_of(value)] == kNone; });
  }

  int64_t bytes() const {
    const int64_t stored = std::count(stored_.begin(), stored_.end(), 1);
    return head_bytes() + halves_ * (stored * kStoredBytes + (blocks_ - stored) * kCoded);
  }

  void write(uint8_t* to) const {
    for (int64_t i = 0; i < kShortExponents; ++i) {
      to[i] = static_cast<uint8_t>(exponents_[i] >> 1);
      to[kShortExponents + i] = static_cast<uint8_t>(exponents_[i] << 7);
    }
    std::copy(stored_.begin(), stored_.end(), to + 2 * kShortExponents);
    uint8_t* at = to + head_bytes();
    for (int64_t b = 0; b < blocks_; ++b) {
      if (stored_[b]) {
        std::memcpy(at, block(b), halves_ * kStoredBytes);
        at += halves_ * kStoredBytes;
        continue;
      }
      for (const uint16_t* group = block(b); group < block(b + 1);
           group += kShortGroup, at += kShortGroupBytes)
        write_group(group, at);
    }
  }

 private:
  static constexpr uint8_t kNone = 0xff;
  static constexpr int64_t kHalfGroup = kShortGroup / 2;
  static constexpr int64_t kStoredBytes = kShortBlock * 2;
  static constexpr int64_t kCoded = kShortBlock / kShortGroup * kShortGroupBytes;

  static int exponent_of(uint16_t value) { return value >> 7 & 0xff; }

  const uint16_t* block(int64_t b) const { return pairs_ + b * halves_ * kShortBlock; }
  int64_t head_bytes() const {
    return (2 * kShortExponents + blocks_ + kShortLine - 1) / kShortLine * kShortLine;
  }

  void choose_exponents() {
    std::array<int64_t, 256> count{};
    std::for_each(block(0), block(blocks_), [&](uint16_t value) { ++count[exponent_of(value)]; });
    std::array<int, 256> order;
    for (int i = 0; i < 256; ++i) order[i] = i;
    std::partial_sort(order.begin(), order.begin() + kShortExponents, order.end(),
                      [&](int a, int b) { return count[a] != count[b] ? count[a] > count[b] : a < b; });
    code_.fill(kNone);
    for (int64_t i = 0; i < kShortExponents; ++i) {
      exponents_[i] = order[i];
      code_[order[i]] = static_cast<uint8_t>(i);
    }
  }

  void write_group(const uint16_t* values, uint8_t* to) const {
    for (int64_t byte = 0; byte < kHalfGroup; ++byte) {
      // The value of the first 64 that stands at this byte.
      const int64_t lane = byte / 16, within = byte % 16, value = within / 8 * 32 + lane * 8 + within % 8;
      const uint16_t low = values[value], high = values[kHalfGroup + value];
      to[byte] = static_cast<uint8_t>(code_[exponent_of(low)] | code_[exponent_of(high)] << 4);
      to[kHalfGroup + byte] = sign_and_mantissa(low);
      to[2 * kHalfGroup + byte] = sign_and_mantissa(high);
    }
  }
  static uint8_t sign_and_mantissa(uint16_t value) {
    return static_cast<uint8_t>((value >> 8 & 0x80) | (value & 0x7f));
  }

  const uint16_t* pairs_;
  int64_t halves_, blocks_;
  std::vector<uint8_t> stored_;
  std::array<int, kShortExponents> exponents_;
  std::array<uint8_t, 256> code_;
};

}  // namespace cnnfast::cpu
