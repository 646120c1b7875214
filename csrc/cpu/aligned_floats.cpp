#include "cpu/aligned_floats.h"

#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cnnfast::cpu {
namespace {

constexpr size_t kHugePage = 2 << 20;

}  // namespace

AlignedFloats::AlignedFloats(int64_t count) : size_(count) {
  if (count == 0) return;
  const auto bytes = static_cast<size_t>(count) * sizeof(float);
  void* p = nullptr;
  if (posix_memalign(&p, bytes < kHugePage ? 64 : kHugePage, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
  // Hardware prefetching ends at the border of a page.
  if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  data_.reset(static_cast<float*>(p));
}

void AlignedFloats::Free::operator()(float* p) const { std::free(p); }

float* thread_scratch(ScratchSlot slot, int64_t floats) {
  thread_local std::vector<AlignedFloats> memory;
  while (memory.size() < static_cast<size_t>(ScratchSlot::kCount)) memory.emplace_back(0);
  AlignedFloats& own = memory[static_cast<size_t>(slot)];
  if (own.size() < floats) own = AlignedFloats(floats);
  return own.data();
}

}  // namespace cnnfast::cpu
