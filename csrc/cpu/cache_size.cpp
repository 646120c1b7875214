#include "cpu/cache_size.h"

#include <unistd.h>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <fstream>
#include <set>

namespace cnnfast::cpu {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int kSecondLevel = 2, kMostIndices = 8;

int64_t bytes_of_a_core() {
  int64_t bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? std::clamp(bytes, kMiB, 4 * kMiB) : 2 * kMiB;
}

// None where that is not known: a thread bound to its place may use its own CPUs, not those of the others.
std::vector<int> usable_cpus() {
  std::vector<int> cpus;
#if defined(_OPENMP)
  if (omp_get_proc_bind() != omp_proc_bind_false) return cpus;
#endif
#if defined(__linux__)
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof(usable), &usable) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &usable)) cpus.push_back(cpu);
#endif
  return cpus;
}

std::string first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// The CPUs that share this one's second-level cache, as Linux lists them ("0-1", "3,67").
std::string sharers(int cpu, const std::string& system) {
  const std::string own = std::to_string(cpu);
  for (int i = 0; i < kMostIndices; ++i) {
    const std::string cache = system + "/cpu" + own + "/cache/index" + std::to_string(i);
    if (first_line(cache + "/level") != std::to_string(kSecondLevel)) continue;
    const std::string list = first_line(cache + "/shared_cpu_list");
    return list.empty() ? own : list;
  }
  return own;
}

}  // namespace

int64_t second_level_caches(const std::vector<int>& cpus, const std::string& system) {
  std::set<std::string> lists;
  for (const int cpu : cpus) lists.insert(sharers(cpu, system));
  return static_cast<int64_t>(lists.size());
}

int64_t second_level_cache(int64_t threads) {
  static const int64_t bytes = bytes_of_a_core(), caches = second_level_caches(usable_cpus());
  if (caches == 0 || threads <= caches) return bytes;
  return bytes / ((threads + caches - 1) / caches);
}

}  // namespace cnnfast::cpu
