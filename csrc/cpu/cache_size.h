// The sizes of this CPU's caches, as the system says them.
#pragma once
#include <cstdint>

namespace cnnfast::cpu {

// Bytes of one core's second-level cache, taken for 1 MiB at least and 4 MiB at most; 2 MiB where the system
// does not say.
int64_t second_level_cache();

}  // namespace cnnfast::cpu
