#include "cpu/memory_pool.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/common.h"

namespace cnnfast::cpu {
namespace {

// Smaller blocks stay with the C library.
constexpr size_t kLeastBytes = 1 << 20;
constexpr size_t kHugePage = 2 << 20;
// From here on rounding up to whole huge pages is no waste.
constexpr size_t kHugeBytes = 8 * kHugePage;

bool is_switched_off() {
#if defined(__SANITIZE_ADDRESS__)
  return true;  // its own allocator sees uses of what was freed
#else
  const char* value = std::getenv("CNNFAST_KEEP_MEMORY");
  return value && std::string_view(value) == "0";
#endif
}

// Sizes are rounded up to eighths of a power of two, so that they meet again.
size_t rounded(size_t bytes) {
  size_t step = kLeastBytes / 8;
  while (step * 16 <= bytes) step *= 2;
  if (bytes >= kHugeBytes) step = std::max(step, kHugePage);
  return (bytes + step - 1) / step * step;
}

void* new_block(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, bytes >= kHugeBytes ? kHugePage : 64, bytes) != 0) return nullptr;
#if defined(__linux__)
  if (bytes >= kHugeBytes) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}

class Pool final : public c10::Allocator {
 public:
  // Never destroyed: tensors may outlive this library's static objects.
  static Pool& instance() {
    static Pool& pool = *new Pool;
    return pool;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* block = bytes ? take(rounded(bytes)) : nullptr;
    if (block) c10::profiledCPUMemoryReporter().New(block, bytes);
    return {block, block, &Pool::give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Pool::give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  void release() {
    const std::lock_guard lock(mutex_);
    shrink(used_);
  }

 private:
  struct Idle {
    void* block;
    size_t bytes;
  };

  Pool() {
    // A child of fork gets a mutex that nobody holds.
    pthread_atfork([] { instance_mutex().lock(); }, [] { instance_mutex().unlock(); },
                   [] { instance_mutex().unlock(); });
  }
  static std::mutex& instance_mutex() { return instance().mutex_; }

  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    // The smallest that is large enough, if not much of it would lie idle; of equal ones the last freed,
    // which may still be in cache.
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= bytes + bytes / 4 &&
          (best == idle_.end() || it->bytes <= best->bytes))
        best = it;
    void* block = nullptr;
    if (best != idle_.end()) {
      block = best->block;
      bytes = best->bytes;
      idle_.erase(best);
      idle_bytes_ -= bytes;
    } else {
      block = new_block(bytes);
      if (!block) {
        shrink(used_);
        block = new_block(bytes);
      }
      TORCH_CHECK(block, "cnnfast: not enough memory: a tensor of ", bytes, " bytes was asked for");
    }
    sizes_.emplace(block, bytes);
    used_ += bytes;
    most_used_ = std::max(most_used_, used_);
    // A step's parts need blocks of different sizes: with little more than what is used at once, blocks would
    // be given back and asked for again.
    shrink(2 * most_used_);
    return block;
  }

  static void give_back(void* block) {
    if (!block) return;
    c10::profiledCPUMemoryReporter().Delete(block);
    Pool& pool = instance();
    const std::lock_guard lock(pool.mutex_);
    const auto it = pool.sizes_.find(block);
    pool.idle_.push_back({block, it->second});
    pool.idle_bytes_ += it->second;
    pool.used_ -= it->second;
    pool.sizes_.erase(it);
  }

  // Gives back the longest idle blocks until no more than this is held.
  void shrink(size_t most) {
    auto end = idle_.begin();
    for (; end != idle_.end() && used_ + idle_bytes_ > most; ++end) {
      idle_bytes_ -= end->bytes;
      std::free(end->block);
    }
    idle_.erase(idle_.begin(), end);
  }

  std::mutex mutex_;
  std::vector<Idle> idle_;  // the longest idle first
  std::unordered_map<void*, size_t> sizes_;
  size_t used_ = 0, idle_bytes_ = 0, most_used_ = 0;
};

}  // namespace

at::Tensor gradient_empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                          std::optional<at::MemoryFormat> format) {
  static const bool off = is_switched_off();
  const auto bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (off || bytes < kLeastBytes) return at::empty(sizes, options, format);
  return at::detail::empty_generic(sizes, &Pool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), format);
}

namespace {

at::Tensor empty_with_strides_of(const at::Tensor& t, const at::TensorOptions& options) {
  const at::MemoryFormat format = t.suggest_memory_format();
  return t.is_contiguous(format) ? gradient_empty(t.sizes(), options, format) : at::empty_like(t, options);
}

}  // namespace

at::Tensor gradient_empty_like(const at::Tensor& t) { return empty_with_strides_of(t, t.options()); }

at::Tensor float_gradient_empty_like(const at::Tensor& t) {
  return empty_with_strides_of(t, t.options().dtype(at::kFloat));
}

at::Tensor output_empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                        std::optional<at::MemoryFormat> format) {
  return records_gradient() ? gradient_empty(sizes, options, format) : at::empty(sizes, options, format);
}

void release_kept_memory() { Pool::instance().release(); }

}  // namespace cnnfast::cpu
