// From a graph and its sizes to steps and places.
#pragma once
#include "plan/program.h"
#include "plan/zones.h"

namespace cnnfast::plan {

class Lowering {
 public:
  Lowering(const Graph& graph, const std::vector<Value>& values, ConstantStore& constants, Program& program);
  void run();

 private:
  struct Buffer {
    int64_t channels = 0;
    cpu::ImageSize size{};
    cpu::Border border{};
    bool external = false;          // an output tensor: no border
    int64_t first = -1, last = -1;  // phases
  };

  bool is_flattened(int64_t node) const;
  cpu::ImageSize image_of(const Value& v) const;
  int64_t source_of(int64_t node) const;
  int new_buffer(int64_t node, bool external);
  void place_outputs();
  void place_concats();
  void find_slice_of_concat(int64_t node);
  void place_rest();
  bool can_write_slice(int64_t node) const;
  // In in_place.cpp.
  int64_t last_step_of(int64_t reader) const;
  int64_t last_reader(int64_t node) const;
  bool keeps_strips(int64_t node) const;
  bool begins_with(int64_t node, int64_t value) const;
  int buffer_of_residual(int64_t node) const;
  int buffer_of_operand(int64_t node) const;
  bool may_be_overwritten(int64_t operand, int64_t node) const;
  void choose_algorithms();
  void find_prologues();
  void find_conv_pools();
  std::vector<int64_t> only_readers() const;
  void find_gathers();
  // In siblings.cpp.
  bool is_plain_1x1(int64_t node) const;
  bool gains_by_blocks(int64_t node) const;
  bool may_be_sibling(int64_t node) const;
  void find_siblings();
  std::vector<Sibling> siblings_of(int64_t node, WeightForm form) const;
  void emit_siblings(int64_t node);
  // In pool_conv.cpp.
  void find_pool_convs();
  void emit_pool_conv(int64_t node);
  // In scale_conv.cpp.
  void find_scale_convs();
  void emit_scale_conv(int64_t node);
  // In expansions.cpp.
  bool may_be_expanded(int64_t node) const;
  void find_expansions();
  void find_inverted_residuals();
  void find_expansion_means();
  Place place_of_sums(int64_t node) const;
  ExpansionPart expansion_part(int64_t node);
  void emit_expansion(int64_t node);
  bool takes_slice(int64_t node) const;
  cpu::PoolCall pool_of(int64_t node) const;
  int64_t read_by(int64_t node) const;
  cpu::Prologue prologue_of(int64_t node) const;
  cpu::ConvGeometry conv_geometry(int64_t node) const;
  cpu::ConvGeometry linear_geometry(int64_t node) const;
  cpu::Border border_of(int64_t node) const;
  bool needs_border(int64_t node) const;
  void demand_border(int64_t node, const cpu::Border& border);
  void spread_pixels(int64_t node);
  void demand_borders();
  Place place(int64_t node) const;

  void emit(int64_t node);
  void emit_conv(int64_t node);
  void emit_linear(int64_t node);
  void emit_pool(int64_t node);
  void emit_binary(int64_t node);
  void emit_shuffle(int64_t node);
  void emit_norm(int64_t node);
  void emit_concat(int64_t node);
  void emit_outputs();
  void add(std::unique_ptr<Step> step);
  bool takes_prologue(int64_t node) const;
  // In zones.cpp.
  void find_zones(int64_t node);
  void emit_zones(int64_t node);
  // In lowering16.cpp.
  bool takes_pairs_here(int64_t node) const;
  bool takes_prologue16(int64_t node) const;
  bool is_max_pool_as_stored(int64_t node) const;
  std::shared_ptr<const ConvConstants> pair_constants(int64_t node, const cpu::ConvGeometry& geometry);
  void emit_conv16(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top, int64_t pad_left);
  void emit_scale_conv16(int64_t node, const cpu::ConvGeometry& geometry, const Activation& activation,
                         const Place& from, const Place& factors);
  void find_shuffles();
  bool is_written_by_conv(int64_t shuffle) const;
  void emit_widened_pixels(int64_t node);
  void emit_conv_pool16(int64_t conv, int64_t pool, const std::optional<LrnParams>& norm);
  void add_step(std::unique_ptr<Step> step);
  // In schedule.cpp.
  void order_steps(const std::vector<int64_t>& phase);
  void touch(int buffer, int64_t phase);
  void place_values();
  void group_steps();
  void finish();

  const Graph& graph_;
  const std::vector<Value>& values_;
  ConstantStore& constants_;
  Program& program_;
  std::vector<Buffer> buffers_;
  std::vector<cpu::ConvAlgorithm> algorithm_;  // per node
  std::vector<std::vector<Zone>> zones_;       // per node: of a convolution that is computed by them
  std::vector<bool> pairs_;                    // per node: multiplies pairs of bfloat16
  std::vector<bool> prologue_;                 // per node: an affine node that its reader does on the way in
  std::vector<bool> projected_;                // per node: a pooling done on the way into its 1x1 convolution
  std::vector<bool> scaled_;                   // per node: a product done on the way into its 1x1 convolution
  std::vector<int64_t> expanded_by_;  // per node: the convolution behind it that is done with it, -1: none
  std::vector<int> sums_of_;          // per node: the buffer of its strips' sums, -1: none
  std::vector<std::vector<int64_t>> siblings_;  // per node: convolutions computed with it, itself the first
  std::vector<bool> joined_;                    // per node: computed with an earlier sibling
  std::vector<bool> gathered_;                  // per node: a concatenation whose reader takes its parts
  std::vector<int64_t> pooled_by_;              // per node: the pooling done with this convolution, -1: none
  std::vector<std::vector<Strip>> strips_;      // per node, for those convolutions
  std::vector<int64_t> shuffled_by_;  // per node: the shuffle that this convolution writes, -1: none
  std::vector<int> buffer_of_;        // per node, -1: not placed
  std::vector<int64_t> channel_of_;   // per node
  std::vector<int> output_buffer_;    // per output
};

}  // namespace cnnfast::plan
