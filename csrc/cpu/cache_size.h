// The sizes of this CPU's caches, as the system says them.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace cnnfast::cpu {

// Bytes of second-level cache that each of `threads` threads has to itself: one core's, or its part where
// there are more threads than cores that this process may use. 1 MiB is taken for a core at least and 4 MiB
// at most; 2 MiB where the system does not say.
int64_t second_level_cache(int64_t threads);

// How many second-level caches these CPUs have among them; a CPU of which `system`, where Linux describes its
// CPUs, says nothing has one to itself.
int64_t second_level_caches(const std::vector<int>& cpus,
                            const std::string& system = "/sys/devices/system/cpu");

}  // namespace cnnfast::cpu
