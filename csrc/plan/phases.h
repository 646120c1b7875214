// Which steps may run side by side: a barrier is needed only where a step meets what another one wrote or
// still reads.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "plan/steps.h"

namespace cnnfast::plan {

// The earliest phase of every step: all steps that it depends on are in earlier phases.
std::vector<int64_t> phases_of(const std::vector<std::unique_ptr<Step>>& steps);

}  // namespace cnnfast::plan
