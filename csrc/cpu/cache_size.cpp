#include "cpu/cache_size.h"

#include <unistd.h>

#include <algorithm>

namespace cnnfast::cpu {

int64_t second_level_cache() {
  int64_t bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? std::clamp<int64_t>(bytes, 1 << 20, 4 << 20) : 2 << 20;
}

}  // namespace cnnfast::cpu
