#include "cpu/parallel.h"

#include <pthread.h>

namespace cnnfast::cpu {
namespace {

std::atomic<bool> forked{false};

// Any fork counts: torch's own operators may have started the OpenMP pool that the child has lost.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

bool in_forked_child() { return registered == 0 && forked.load(std::memory_order_relaxed); }

}  // namespace cnnfast::cpu
