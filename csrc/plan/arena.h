// Offsets for buffers that live over known ranges of phases.
#pragma once
#include <cstdint>
#include <vector>

namespace cnnfast::plan {

struct Lifetime {
  int64_t floats;
  int64_t first, last;  // phases, both included
};

// Places every buffer so that no two that live in the same phase overlap; returns offsets (multiples of 16
// floats) and the arena's size. Largest first, each into the lowest gap that takes it.
std::vector<int64_t> place_buffers(const std::vector<Lifetime>& buffers, int64_t& total);

}  // namespace cnnfast::plan
