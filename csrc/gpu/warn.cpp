#include "gpu/warn.h"

#include <c10/util/Exception.h>

#include <mutex>
#include <set>

namespace cnnfast::gpu {

void warn(const std::string& text) {
  static std::mutex mutex;
  static auto& seen = *new std::set<std::string>;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!seen.insert(text).second) return;
  }
  TORCH_WARN("cnnfast: ", text);
}

}  // namespace cnnfast::gpu
