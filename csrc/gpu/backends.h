// From a call to the backend that serves it: settled once per key, by the rule of choice.h.
#pragma once
#include <c10/core/Device.h>
#include <c10/util/FunctionRef.h>

#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "gpu/choice.h"
#include "gpu/stream.h"
#include "gpu/triton/driver.h"
#include "gpu/warn.h"
#include "ops/device_kernel.h"

namespace cnnfast::gpu {

// One way to serve calls with a key. `run` holds nothing of the call that it was found for.
template <class Call, class Result>
struct Backend {
  std::string name, unavailable;  // as Option has them
  std::function<Result(const Call&)> run;
};

template <class Call, class Result>
using Backends = std::vector<Backend<Call, Result>>;

// What keys were settled on in this process.
template <class Call, class Result>
class Settled {
 public:
  static Settled& of_process() {
    static auto& settled = *new Settled;  // outlives every thread
    return settled;
  }
  const Backend<Call, Result>* find(const std::string& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = rows_.find(key);
    return found == rows_.end() ? nullptr : &found->second;  // rows are never erased or changed
  }
  void add(const std::string& key, const Backend<Call, Result>& backend) {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_.emplace(key, backend);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, Backend<Call, Result>> rows_;
};

template <class Call, class Result>
bool is_settled(const std::string& key) {
  return Settled<Call, Result>::of_process().find(key) != nullptr;
}

// Whether options may be timed now: not under deterministic algorithms, as times differ from run to run, nor
// while a graph is captured.
bool may_measure(c10::Device device);

// Chooses among the backends, runs one and gives its result. What cannot run after all is left out, aloud
// where that is a failure.
template <class Call, class Result>
Result settle(const std::string& op, const std::string& key, c10::Device device, const Call& call,
              Backends<Call, Result> backends, bool measure) {
  std::vector<Option> options;
  for (const auto& backend : backends) options.push_back({backend.name, backend.unavailable});
  const std::string& forced = forced_among(options);
  size_t running = 0;
  const auto time = [&](size_t index) {
    running = index;
    return milliseconds(device, [&] { backends[index].run(call); });
  };
  for (;;) {
    try {
      running = choose(op, key, options, forced, Times::of_process(), measure ? Timer(time) : Timer());
      Result result = backends[running].run(call);
      if (measure) Settled<Call, Result>::of_process().add(key, backends[running]);
      return result;
    } catch (const Unserved& answer) {
      options[running].unavailable = answer.what();
    } catch (const DriverError& error) {
      if (forced.empty()) warn(std::string(error.what()) + "; " + op + " goes on without it");
      options[running].unavailable = error.what();
    }
  }
}

// The result of the call by the backend that its key was settled on; `find` lists the backends where it has
// not been, in the order of preference where nothing is known.
template <class Call, class Result>
Result run_chosen(const std::string& op, const std::string& key, c10::Device device, const Call& call,
                  c10::function_ref<Backends<Call, Result>()> find) {
  if (const auto* settled = Settled<Call, Result>::of_process().find(key)) {
    try {
      return settled->run(call);
    } catch (const Unserved&) {  // something that the key does not tell
    }
  }
  return settle<Call, Result>(op, key, device, call, find(), may_measure(device));
}

// Why there are no CUDA kernels of an operator, or "".
std::string why_no_cuda(bool built);

}  // namespace cnnfast::gpu
