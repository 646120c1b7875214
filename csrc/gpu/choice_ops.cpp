// The choice of a backend as operators: for kernels that only Python can launch, so that they are chosen by
// the same rule, from the same table of times.
#include <torch/library.h>

#include <algorithm>

#include "gpu/choice.h"
#include "gpu/triton/table.h"

namespace cnnfast::gpu {
namespace {

class MustMeasure {};  // thrown by the timer of a choice that measures elsewhere

// The name to run; empty where the options must be timed first, which add_backend_times then records.
std::string choose_backend(std::string_view op, std::string_view key, std::vector<std::string> names,
                           std::vector<std::string> unavailable, bool may_measure) {
  TORCH_CHECK(!names.empty() && names.size() == unavailable.size(), "cnnfast::choose_backend: ", names.size(),
              " names, but ", unavailable.size(), " reasons");
  std::vector<Option> options;
  for (size_t i = 0; i < names.size(); ++i) options.push_back({names[i], unavailable[i]});
  const Timer timer = [](size_t) -> double { throw MustMeasure(); };
  try {
    return names[choose(std::string(op), std::string(key), options, forced_backend(), Times::of_process(),
                        may_measure ? timer : Timer())];
  } catch (const MustMeasure&) {
    return "";
  }
}

void add_backend_times(std::string_view key, std::vector<std::string> names, std::vector<double> times) {
  TORCH_CHECK(names.size() == times.size(), "cnnfast::add_backend_times: ", names.size(), " names, but ",
              times.size(), " times");
  TORCH_CHECK(std::all_of(times.begin(), times.end(), [](double time) { return time >= 0; }),
              "cnnfast::add_backend_times: times must be milliseconds, not ", times);
  Times::Row row;
  for (size_t i = 0; i < names.size(); ++i) row.emplace_back(names[i], times[i]);
  Times::of_process().add(std::string(key), row);
}

std::vector<std::string> backend_times() {
  std::vector<std::string> lines;
  for (const auto& [key, row] : Times::of_process().all())
    for (const auto& [name, time] : row) lines.push_back(key + "\t" + name + "\t" + std::to_string(time));
  return lines;
}

std::vector<std::string> triton_kernels() {
  std::vector<std::string> names;
  for (size_t i = 0; i < table().count; ++i) names.emplace_back(table().variants[i].name);
  return names;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CatchAll, m) {
  m.impl("choose_backend", TORCH_FN(choose_backend));
  m.impl("add_backend_times", TORCH_FN(add_backend_times));
  m.impl("backend_times", TORCH_FN(backend_times));
  m.impl("triton_kernels", TORCH_FN(triton_kernels));
}

}  // namespace cnnfast::gpu
