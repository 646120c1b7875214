#include "emulation.h"

#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::fputs("emulation: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, " (block %u %u %u, thread %u)\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  va_end(arguments);
  std::abort();
}

namespace {

struct Memory {
  uintptr_t begin, end;
  int64_t id;
};
std::vector<Memory> memories;
std::map<int64_t, Traffic> counted;

Traffic* traffic_of(const void* address) {
  const auto place = reinterpret_cast<uintptr_t>(address);
  for (const Memory& memory : memories)
    if (place >= memory.begin && place < memory.end) return &counted[memory.id];
  return nullptr;
}

// ---- fibres

constexpr size_t kStack = 128 * 1024;

enum class State { kReady, kBarrier, kWarp, kDone };

struct Place {
  const char* file = nullptr;
  int line = 0;
  bool operator!=(const Place& other) const { return line != other.line || std::strcmp(file, other.file); }
};

struct Fibre {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;  // the sanitizer's
  State state = State::kDone;
  Place waits_at;
};

struct Warp {
  unsigned arrived = 0, mask = 0;
  Place place;
  uint64_t given[kWarp] = {}, result[kWarp] = {};
};

struct Block {
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Warp> warps;
  std::vector<unsigned> ready;
  unsigned threads = 0, alive = 0, at_barrier = 0, current = 0;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler{};
  void* scheduler_fake = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_bytes = 0;
  struct Shared {
    std::unique_ptr<char[]> memory;
    void* begin = nullptr;
    size_t bytes = 0;
  };
  std::map<const void*, Shared> shared;
};
Block block;

void before_switch(void** fake, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#else
  (void)fake, (void)stack, (void)bytes;
#endif
}

void after_switch(void* fake, const void** stack, size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, bytes);
#else
  (void)fake, (void)stack, (void)bytes;
#endif
}

void to_scheduler() {
  Fibre& self = *block.fibres[block.current];
  before_switch(&self.fake_stack, block.scheduler_stack, block.scheduler_bytes);
  swapcontext(&self.context, &block.scheduler);
  after_switch(self.fake_stack, nullptr, nullptr);
}

// A fibre lives as long as the process: each launch gives it another body.
void live() {
  after_switch(nullptr, &block.scheduler_stack, &block.scheduler_bytes);
  while (true) {
    (*block.body)();
    block.fibres[block.current]->state = State::kDone;
    --block.alive;
    if (block.at_barrier) fail("a thread ends while %u others wait at a barrier", block.at_barrier);
    to_scheduler();
  }
}

void make_fibres(unsigned threads) {
  while (block.fibres.size() < threads) {
    auto fibre = std::make_unique<Fibre>();
    getcontext(&fibre->context);
    fibre->context.uc_stack.ss_sp = fibre->stack.get();
    fibre->context.uc_stack.ss_size = kStack;
    fibre->context.uc_link = nullptr;
    makecontext(&fibre->context, live, 0);
    block.fibres.push_back(std::move(fibre));
  }
}

void resume(unsigned thread) {
  block.current = thread;
  threadIdx = dim3(thread, 0, 0);
  Fibre& fibre = *block.fibres[thread];
  before_switch(&block.scheduler_fake, fibre.stack.get(), kStack);
  swapcontext(&block.scheduler, &fibre.context);
  after_switch(block.scheduler_fake, nullptr, nullptr);
}

void make_ready(unsigned thread) {
  block.fibres[thread]->state = State::kReady;
  block.ready.push_back(thread);
}

void release_barrier() {
  if (!block.at_barrier || block.at_barrier != block.alive) return;
  const Place* place = nullptr;
  for (unsigned thread = 0; thread < block.threads; ++thread) {
    Fibre& fibre = *block.fibres[thread];
    if (fibre.state != State::kBarrier) continue;
    if (place && *place != fibre.waits_at)
      fail("threads wait at different barriers, of lines %d and %d", place->line, fibre.waits_at.line);
    place = &fibre.waits_at;
  }
  block.at_barrier = 0;
  for (unsigned thread = 0; thread < block.threads; ++thread)
    if (block.fibres[thread]->state == State::kBarrier) make_ready(thread);
}

void run_block(std::mt19937_64& random) {
  for (auto& [key, memory] : block.shared) std::memset(static_cast<void*>(memory.begin), 0xff, memory.bytes);
  block.warps.assign((block.threads + kWarp - 1) / kWarp, Warp());
  block.alive = block.threads;
  block.at_barrier = 0;
  for (unsigned thread = 0; thread < block.threads; ++thread) make_ready(thread);
  while (block.alive) {
    release_barrier();
    if (block.ready.empty()) {
      for (const Warp& warp : block.warps)
        if (warp.arrived)
          fail("line %d: a shuffle waits for lanes %08x of its warp", warp.place.line,
               warp.mask & ~warp.arrived);
      fail("no thread can go on");
    }
    std::swap(block.ready[random() % block.ready.size()], block.ready.back());
    const unsigned next = block.ready.back();
    block.ready.pop_back();
    resume(next);
  }
}

}  // namespace

void name_memory(int64_t id, const void* begin, size_t bytes) {
  const auto place = reinterpret_cast<uintptr_t>(begin);
  memories.push_back({place, place + bytes, id});
}

void forget_memory() {
  memories.clear();
  counted.clear();
}

const std::map<int64_t, Traffic>& traffic() { return counted; }

void count_load(const void* address, size_t bytes) {
  if (Traffic* t = traffic_of(address)) t->loaded += bytes, ++t->loads;
}

void count_store(const void* address, size_t bytes) {
  if (Traffic* t = traffic_of(address)) t->stored += bytes, ++t->stores;
}

void launch_block(dim3 grid, dim3 index, unsigned threads, uint64_t seed,
                  const std::function<void()>& thread) {
  make_fibres(threads);
  std::mt19937_64 random(seed);
  gridDim = grid;
  blockDim = dim3(threads);
  blockIdx = index;
  block.threads = threads;
  block.body = &thread;
  run_block(random);
}

void launch(dim3 grid, unsigned threads, uint64_t seed, const std::function<void()>& thread) {
  std::mt19937_64 random(seed);
  std::vector<dim3> order;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) order.emplace_back(x, y, z);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  for (const dim3& index : order) launch_block(grid, index, threads, random(), thread);
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  Block::Shared& shared = block.shared[key];
  if (!shared.memory) {
    // The end of the allocation is the end of the type, for the sanitizer to see what lies beyond.
    const size_t slack = (alignment - bytes % alignment) % alignment;
    shared.memory.reset(static_cast<char*>(::operator new[](bytes + slack)));
    shared.begin = shared.memory.get();
    shared.bytes = bytes;
    std::memset(shared.begin, 0xff, bytes);
  }
  return shared.begin;
}

void barrier(const char* file, int line) {
  Fibre& self = *block.fibres[block.current];
  if (block.alive != block.threads) fail("line %d: a barrier after other threads have ended", line);
  self.state = State::kBarrier;
  self.waits_at = {file, line};
  ++block.at_barrier;
  to_scheduler();
}

unsigned lane() { return block.current % kWarp; }

namespace {

// Waits for all lanes of the mask; afterwards the warp's result holds what they gave.
Warp& meet(unsigned mask, uint64_t value, const char* file, int line) {
  Warp& warp = block.warps[block.current / kWarp];
  const unsigned self = lane();
  if (!(mask >> self & 1))
    fail("line %d: a shuffle's mask %08x leaves out its own lane %u", line, mask, self);
  if (warp.arrived && (warp.mask != mask || warp.place != Place{file, line}))
    fail("lanes of one warp are in different shuffles, of lines %d and %d", warp.place.line, line);
  warp.mask = mask;
  warp.place = {file, line};
  warp.arrived |= 1u << self;
  warp.given[self] = value;
  if (warp.arrived == mask) {
    std::memcpy(warp.result, warp.given, sizeof(warp.given));
    warp.arrived = 0;
    const unsigned first = block.current / kWarp * kWarp;
    for (unsigned i = 0; i < kWarp; ++i)
      if (mask >> i & 1 && first + i != block.current) make_ready(first + i);
    return warp;
  }
  block.fibres[block.current]->state = State::kWarp;
  to_scheduler();
  return warp;
}

}  // namespace

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, const char* file, int line) {
  const Warp& warp = meet(mask, value, file, line);
  if (source >= kWarp || !(mask >> source & 1))
    fail("line %d: a shuffle reads lane %u, which its mask %08x leaves out", line, source, mask);
  return warp.result[source];
}

unsigned ballot(unsigned mask, bool value, const char* file, int line) {
  const Warp& warp = meet(mask, value, file, line);
  unsigned bits = 0;
  for (unsigned i = 0; i < kWarp; ++i)
    if (mask >> i & 1 && warp.result[i]) bits |= 1u << i;
  return bits;
}

}  // namespace emulation
