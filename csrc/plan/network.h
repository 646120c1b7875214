// A parsed network with its packed constants and one program per set of input sizes.
#pragma once
#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "plan/program.h"

namespace cnnfast::plan {

class Network : public ConstantStore {
 public:
  // Keeps `weights` alive.
  Network(at::Tensor weights, const at::Tensor& plan);

  const Graph& graph() const { return graph_; }
  // The program for these sizes, planned on first use; the least recently used is forgotten beyond a bound.
  std::shared_ptr<Program> program(const std::vector<at::Tensor>& inputs);

  std::shared_ptr<const ConvConstants> conv_constants(int64_t node, const cpu::ConvGeometry& geometry,
                                                      WeightForm form) override;
  std::shared_ptr<const ConvConstants> window_constants(int64_t node, const cpu::ConvGeometry& geometry,
                                                        int64_t row, int64_t column,
                                                        WeightForm form) override;
  const float* constant(int64_t offset) const override;

 private:
  using Key = std::vector<std::vector<int64_t>>;

  at::Tensor weights_;
  Graph graph_;
  std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<Program>>> programs_;  // most recently used first
  std::map<std::vector<int64_t>, std::shared_ptr<const ConvConstants>> constants_;
};

// The network of these tensors: parsed, checked and packed at the first call, then found by the tensors'
// identity and version.
std::shared_ptr<Network> find_network(const at::Tensor& weights, const at::Tensor& plan);
void clear_networks();

}  // namespace cnnfast::plan
