// Transformed weights as whole numbers with scales (cpu/fixed_winograd.h).
#pragma once
#include "cpu/fixed_winograd.h"
#include "cpu/vec16/avx512_vnni.h"

namespace {

// A vector of channels of FixedWeightsCall.
void fixed_weight_vector(const FixedWeightsCall& c, int64_t first) {
  const FixedChunks chunks(c.inputs);
  const float* from = c.weights + first;
  const auto size_at = [&](int64_t i) { return Fixed::size(Vec::load(from + i * c.lanes)); };
  Vec largest = Vec::zero(), most = Vec::zero(), all = Vec::zero();
  for (int64_t k = 0; k < c.inputs; k += chunks.length) {
    const int64_t end = k + chunks.length < c.inputs ? k + chunks.length : c.inputs;
    Vec sum = Vec::zero();
    for (int64_t i = k; i < end; ++i) {
      const Vec size = size_at(i);
      sum = sum + size;
      largest = Vec::at_least(largest, size);
    }
    most = Vec::at_least(most, sum);
    all = all + sum;
  }
  // The largest number fits 16 bits, a chunk's sum 32, where every number may be rounded up by a half.
  const float room =
      2147483647.0f / static_cast<float>(kFixedLimit) - static_cast<float>(chunks.length) / 2.0f;
  const Vec bound = Vec::at_least(largest * Vec::set1(1.0f / 32767.0f), most * Vec::set1(1.0f / room));
  const Vec scale = Vec::at_least(bound * Vec::set1(1.00001f), Vec::set1(1e-30f)) + (all - all);
  scale.store(c.scales + first);
  const Vec to_fixed = Vec::set1(1.0f) / scale;
  int16_t* to = c.numbers + 2 * first;
  for (int64_t i = 0; i < chunks.channels(); i += 2, to += 2 * c.lanes) {
    const Vec even = i < c.inputs ? Vec::load(from + i * c.lanes) : Vec::zero();
    const Vec odd = i + 1 < c.inputs ? Vec::load(from + (i + 1) * c.lanes) : Vec::zero();
    Fixed::store_pairs(even, odd, to_fixed, to);
  }
}

void fixed_weights(const FixedWeightsCall& c) {
  for (int64_t first = 0; first < c.lanes; first += Vec::kWidth) fixed_weight_vector(c, first);
}

}  // namespace
