// Which steps may run side by side: a barrier is needed only where a step meets what another one wrote or
// still reads.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "plan/steps.h"

namespace cnnfast::plan {

using Steps = std::vector<std::unique_ptr<Step>>;

// The earliest phase of every step: all steps that it depends on are in earlier phases.
std::vector<int64_t> earliest_phases(const Steps& steps);
// Phases of steps that stay in their order: one begins where a step depends on one of the phase before it.
std::vector<int64_t> phases_in_order(const Steps& steps);

}  // namespace cnnfast::plan
