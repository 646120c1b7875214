// 1x1 convolutions of one bfloat16 value by the float32 kernels: a block of its pixels is widened, or pooled
// as it is stored and then widened, once for all of them, into memory that stays in the second-level cache;
// sums are rounded on the way back.
#include <algorithm>
#include <sstream>

#include "cpu/bf16_table.h"
#include "cpu/parallel.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

using cpu::View;
using cpu::View16;

// Of the second-level cache, for the widened pixels of a block, and for what one convolution makes of them
// before it is rounded.
constexpr int64_t kBlockFloats = 48 * 1024, kResultFloats = 24 * 1024;
constexpr int64_t kBlockGrain = 48;  // pixels: whole register blocks of every panel width
// Fewer do not pay for reading the weights once more, more gain nothing.
constexpr int64_t kLeastPixels = 2 * kBlockGrain, kMostPixels = 4096;
// Threads share fewer blocks pixel by pixel.
constexpr int64_t kUnits = 8;
// Every thread widens all pixels where threads divide output channels, if those are fewer values.
constexpr int64_t kWholeFloats = 4 << 20;

class WidenedPixels : public Step {
 public:
  WidenedPixels(int64_t node, Place from, std::optional<cpu::PoolCall> pool, std::vector<Sibling> siblings)
      : Step(node, {std::move(from)}, siblings[0].to), pool_(std::move(pool)) {
    for (Sibling& s : siblings) {
      if (&s != &siblings[0]) also_writes_.push_back(s.to);
      jobs_.emplace_back(s.geometry, dense(s.geometry, s.geometry.in_channels),
                         dense(s.geometry, s.geometry.out_channels), View{});
      constants_.push_back(std::move(s.constants));
      most_out_ = std::max(most_out_, s.geometry.out_channels);
    }
    const cpu::ConvGeometry& g = jobs_[0].geometry();
    channels_ = g.in_channels;
    pixels_ = g.images * g.out_height * g.out_width;
    grain_ = pool_ ? g.out_width : pixels_ >= kUnits * kBlockGrain ? kBlockGrain : 1;
    const int64_t fitting = std::min(kBlockFloats / channels_, kResultFloats / most_out_);
    block_ = std::max(grain_, std::clamp(fitting, kLeastPixels, kMostPixels) / grain_ * grain_);
  }

  double flops() const override {
    double sum = 0;
    for (const cpu::ConvJob& job : jobs_) sum += job.geometry().flops();
    return sum;
  }
  std::string text() const override {
    std::ostringstream out;
    if (pool_) out << pool_text(true, *pool_) << ", ";
    if (jobs_.size() > 1) out << jobs_.size() << " siblings: ";
    out << conv_text(jobs_[0].geometry()) << ", widened to " << size_text(writes_.size);
    for (const Place& place : also_writes_) out << " and " << size_text(place.size);
    out << ", blocks of " << std::min(block_, pixels_);
    return out.str();
  }
  Constants first_constants(int thread, int team) const override {
    const int64_t first = jobs_[0].first_weight(thread, team);
    return {constants_[0]->weight.data() + first, constants_[0]->weight.size() - first};
  }

 protected:
  void fill_borders(const Memory& memory, int64_t begin, int64_t end) const override {
    for (const Place& place : all_writes()) fill_border16(place, memory, begin, end);
  }

  void compute(const Memory& memory, int thread, int team) const override {
    const bool apart = runs_apart(team);
    const auto [begin, end] = cpu::share(pixels_, grain_, thread, team);
    const int64_t most = apart ? pixels_ : std::min(block_, end - begin);
    if (most <= 0) return;
    const int64_t in_floats = cpu::round_up(most * channels_, 16);
    float* input = cpu::thread_scratch(cpu::ScratchSlot::kWidened, in_floats + most * most_out_);
    float* output = input + in_floats;
    if (apart) return compute_apart(memory, input, output, thread, team);
    for (int64_t pixel = begin; pixel < end; pixel += block_) {
      const int64_t last = std::min(pixel + block_, end);
      widen(memory, pixel, last, input);
      for (size_t i = 0; i < jobs_.size(); ++i) run_pixels(i, memory, input, output, pixel, last);
    }
  }

 private:
  static View dense(const cpu::ConvGeometry& g, int64_t channels) {
    const int64_t row = g.out_width * channels;
    return {nullptr, g.out_height * row, row, channels};
  }
  cpu::PackedConv packed(size_t i) const {
    static const cpu::AlignedFloats none(0);
    return {constants_[i]->weight.data(), none, constants_[i]->shift};
  }
  const Place& to(size_t i) const { return i == 0 ? writes_ : also_writes_[i - 1]; }

  // Where weights outweigh the pixels.
  bool runs_apart(int team) const {
    if (pixels_ * (channels_ + most_out_) > kWholeFloats) return false;
    return std::any_of(jobs_.begin(), jobs_.end(),
                       [&](const cpu::ConvJob& job) { return job.divides_channels(team); });
  }
  void compute_apart(const Memory& memory, float* input, float* output, int thread, int team) const {
    widen(memory, 0, pixels_, input);
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (!jobs_[i].divides_channels(team)) {
        const auto [begin, end] = cpu::share(pixels_, grain_, thread, team);
        if (begin < end) run_pixels(i, memory, input + begin * channels_, output, begin, end);
        continue;
      }
      const auto [first, last] = jobs_[i].channels_of(thread, team);
      if (first >= last) continue;
      jobs_[i].run_at(packed(i), input, output, nullptr, thread, team);
      narrow(i, memory, output, 0, pixels_, first, last);
    }
  }

  // `input` and `output` have pixels [begin, end) alone.
  void run_pixels(size_t i, const Memory& memory, const float* input, float* output, int64_t begin,
                  int64_t end) const {
    const int64_t channels = to(i).size.channels;
    jobs_[i].run_pixels(packed(i), input - begin * channels_, output - begin * channels, begin, end, false);
    narrow(i, memory, output, begin, end, 0, channels);
  }

  void widen(const Memory& memory, int64_t begin, int64_t end, float* input) const {
    if (pool_) return pool(memory, begin / writes_.size.width, end / writes_.size.width, input);
    for_rows(reads_[0], memory, begin, end, [&](cpu::PixelRun<uint16_t> run, int64_t at, int64_t count) {
      cpu::bf16_kernels().widen({run.data, run.step}, {input + at * channels_, channels_}, count, channels_);
    });
  }
  void pool(const Memory& memory, int64_t first, int64_t last, float* input) const {
    const int64_t row = writes_.size.width * channels_, values = (last - first) * row;
    auto* pooled =
        reinterpret_cast<uint16_t*>(cpu::thread_scratch(cpu::ScratchSlot::kStrip, (values + 1) / 2));
    max_pool16(*pool_, reads_[0].view16(memory),
               {pooled - first * row, writes_.size.height * row, row, channels_}, first, last);
    cpu::bf16_kernels().widen({pooled, values}, {input, values}, 1, values);
  }
  void narrow(size_t i, const Memory& memory, const float* output, int64_t begin, int64_t end, int64_t first,
              int64_t last) const {
    const int64_t channels = to(i).size.channels;
    for_rows(to(i), memory, begin, end, [&](cpu::PixelRun<uint16_t> run, int64_t at, int64_t count) {
      cpu::bf16_kernels().narrow({output + at * channels + first, channels}, {run.data + first, run.step},
                                 count, last - first);
    });
  }

  // body(pixels of a row in the arena, number of the first one from `begin` on, their count), or of all rows
  // where they follow one another.
  template <class Body>
  static void for_rows(const Place& place, const Memory& memory, int64_t begin, int64_t end, Body&& body) {
    const View16 v = place.view16(memory);
    const int64_t width = place.size.width, height = place.size.height;
    if (v.row == width * v.pixel && v.image == height * v.row)
      return body(cpu::PixelRun<uint16_t>{v.data + begin * v.pixel, v.pixel}, int64_t{0}, end - begin);
    for (int64_t pixel = begin; pixel < end;) {
      const int64_t row = pixel / width, x = pixel % width, count = std::min(end - pixel, width - x);
      uint16_t* first = v.data + row / height * v.image + row % height * v.row + x * v.pixel;
      body(cpu::PixelRun<uint16_t>{first, v.pixel}, pixel - begin, count);
      pixel += count;
    }
  }

  std::optional<cpu::PoolCall> pool_;
  std::vector<cpu::ConvJob> jobs_;
  std::vector<std::shared_ptr<const ConvConstants>> constants_;
  int64_t channels_, pixels_, grain_, block_, most_out_ = 0;
};

}  // namespace

std::unique_ptr<Step> widened_pixels_step(int64_t node, Place from, std::optional<cpu::PoolCall> pool,
                                          std::vector<Sibling> siblings) {
  return std::make_unique<WidenedPixels>(node, std::move(from), std::move(pool), std::move(siblings));
}

}  // namespace cnnfast::plan
