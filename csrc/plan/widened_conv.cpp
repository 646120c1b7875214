// Convolutions of bfloat16 values by the float32 kernels: strips of rows are widened, with their padding,
// into memory that stays in the second-level cache; sums are rounded on the way back. Direct and Winograd
// convolution, depthwise and grouped ones all run so; a pooling behind the convolution takes the strip before
// it is rounded.
#include <algorithm>
#include <map>
#include <sstream>

#include "cpu/bf16_table.h"
#include "cpu/parallel.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

using cpu::View;
using cpu::View16;

// Of the second-level cache, for a strip's operands and result.
constexpr int64_t kStripFloats = 96 * 1024;
// A whole layer is widened by every thread where threads divide its output channels, if it has fewer values.
constexpr int64_t kWholeFloats = 4 << 20;
constexpr int64_t kUnits = 8;
constexpr double kMostValues = 1e12;
constexpr int64_t kMostFloats = int64_t{1} << 31;
// Weights of more floats come from memory: better read for many pixels than for each of many strips, even
// where those leave the cache.
constexpr int64_t kFarWeights = 1 << 18, kFarStripFloats = 16 * kStripFloats;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// What a convolution of `rows` output rows needs of its input, padding included.
struct StripSize {
  StripSize(const cpu::ConvGeometry& g, int64_t rows) {
    const bool direct = g.algorithm.direct();
    const int64_t tile_height = direct ? 1 : g.tile_height(), tile_width = direct ? 1 : g.tile_width();
    height = (round_up(rows, tile_height) - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1;
    width = (round_up(g.out_width, tile_width) - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
  }
  int64_t height, width;
};

class WidenedConv : public Writes16<RowStep> {
 public:
  WidenedConv(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
              std::shared_ptr<const ConvConstants> constants, std::vector<Place> reads, Place to,
              const cpu::Prologue& prologue, std::optional<PoolBehind> behind)
      : Writes16(node, std::move(reads), std::move(to)),
        geometry_(g),
        pad_top_(pad_top),
        pad_left_(pad_left),
        constants_(std::move(constants)),
        prologue_(prologue),
        behind_(std::move(behind)) {
    check_size();
    if (behind_)
      cuts_.push_back({behind_->strips, 1});
    else
      for (const int64_t units : {int64_t{1}, int64_t{2}, kUnits}) cuts_.push_back(cut(units));
    for (const Cut& cut : cuts_)
      for (const Strip& strip : cut.strips)
        for (const int64_t images : {cut.group, geometry_.images % cut.group})
          if (images) add_job(images, strip.rows());
    const bool whole = !behind_ && floats_of(geometry_.images, geometry_.out_height) <= kWholeFloats;
    if (whole) add_job(geometry_.images, geometry_.out_height);
    may_run_whole_ = whole;
  }

  double flops() const override { return geometry_.flops(); }
  std::string text() const override {
    std::ostringstream out;
    out << (prologue_.scale ? "affine, " : "") << conv_text(geometry_) << ", widened";
    if (behind_)
      out << ", with " << (behind_->norm ? "local response norm and " : "")
          << pool_text(behind_->max, behind_->pool);
    out << " to " << size_text(writes_.size) << ", " << units(cuts_.front());
    if (units(cuts_.back()) != units(cuts_.front())) out << " to " << units(cuts_.back());
    out << " strips";
    return out.str();
  }
  Constants first_constants(int, int) const override {
    return {constants_->weight.data(), constants_->weight.size()};
  }
  int64_t constant_bytes() const override {
    return constants_->weight.size() * static_cast<int64_t>(sizeof(float));
  }
  // Depthwise convolutions alone: others want many rows of many images at once.
  bool joins_groups() const override { return geometry_.narrow_groups() && !behind_; }
  std::optional<RowWindow> window_of(size_t operand) const override {
    if (operand > 0) return RowWindow{1, 0, 1};
    return RowWindow{geometry_.stride_h, pad_top_, (geometry_.kernel_h - 1) * geometry_.dilation_h + 1};
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const int64_t height = geometry_.out_height, most = cuts_.front().strips.front().rows();
    for (int64_t row = begin; row < end;) {
      const int64_t first = row % height, last = std::min({first + most, height, first + end - row});
      const Strip strip{0, 0, first, last};
      run_strip(memory, job_of(1, last - first), row / height, 1, strip, 0, 1);
      row += last - first;
    }
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    if (runs_whole(team)) {
      const Strip all{0, 0, 0, geometry_.out_height};
      return run_strip(memory, job(geometry_.images, all.rows()), 0, geometry_.images, all, thread, team);
    }
    const Cut& cut = cut_for(team);
    const auto count = static_cast<int64_t>(cut.strips.size());
    const auto [begin, end] = cpu::share(units(cut), 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / count * cut.group;
      const int64_t images = std::min(cut.group, geometry_.images - image);
      const Strip& strip = cut.strips[unit % count];
      run_strip(memory, job(images, strip.rows()), image, images, strip, 0, 1);
    }
  }

 private:
  struct Cut {
    std::vector<Strip> strips;  // of an image, or of every image of a group
    int64_t group;              // images of a unit
  };

  bool has_far_weights() const { return geometry_.packed_bytes() / 4 > kFarWeights; }
  // Each of several threads takes its own output channels, or one thread reads far weights once, if not once
  // per block of Winograd's tiles. Where the strips are cut makes no difference to the results.
  bool runs_whole(int team) const {
    if (!may_run_whole_) return false;
    return team == 1 ? has_far_weights() && geometry_.algorithm.direct()
                     : job(geometry_.images, geometry_.out_height).divides_channels(team);
  }
  // One thread has the fewest strips to widen a border for, and the most pixels in each.
  const Cut& cut_for(int team) const {
    return cuts_[std::min<size_t>(static_cast<size_t>(std::min(team, 3)), cuts_.size()) - 1];
  }
  int64_t units(const Cut& cut) const {
    return divide_up(geometry_.images, cut.group) * static_cast<int64_t>(cut.strips.size());
  }
  int64_t floats_of(int64_t images, int64_t rows) const {
    const StripSize in(geometry_, rows);
    const int64_t out = rows * geometry_.out_width * geometry_.out_channels;
    return images *
           (in.height * in.width * geometry_.in_channels + out * static_cast<int64_t>(1 + reads_.size()));
  }

  // Padding and strides of a plan made by hand may ask for more than there is; threads must not find out.
  void check_size() const {
    const StripSize all(geometry_, geometry_.out_height);
    const double values = static_cast<double>(all.height) * static_cast<double>(all.width) *
                          static_cast<double>(geometry_.in_channels);
    TORCH_CHECK(values < kMostValues, "cnnfast: a convolution reads images of ", geometry_.in_channels,
                " channels padded to ", all.height, "x", all.width, ": more than any memory holds");
  }

  // Strips of some rows of an image, whole tiles of them, or several images at once: so many units or more.
  Cut cut(int64_t units) const {
    const int64_t height = geometry_.out_height, images = std::max<int64_t>(1, geometry_.images);
    const int64_t tile = geometry_.algorithm.direct() ? 1 : geometry_.tile_height();
    const bool far = has_far_weights();
    const int64_t wanted = far ? std::min<int64_t>(units, 2) : units;
    const int64_t limit = far ? kFarStripFloats : kStripFloats;
    const auto half = [&](int64_t rows) { return round_up(divide_up(rows, 2), tile); };
    int64_t rows = height;
    while (rows > tile && floats_of(1, rows) > limit) rows = half(rows);
    while (rows > tile && images * divide_up(height, rows) < wanted) rows = half(rows);
    Cut cut{{}, 1};
    if (rows >= height) {
      rows = height;
      cut.group = std::clamp<int64_t>(limit / floats_of(1, height), 1, std::max<int64_t>(1, images / wanted));
      if (far) cut.group = divide_up(images, divide_up(images, std::min(cut.group, images_of_block())));
    }
    for (int64_t y = 0; y < height; y += rows) cut.strips.push_back({0, 0, y, std::min(y + rows, height)});
    return cut;
  }
  // Far weights are read once per block of Winograd's tiles: more images at once leave the cache for nothing.
  int64_t images_of_block() const {
    if (geometry_.algorithm.direct()) return geometry_.images;
    const cpu::ConvJob all(geometry_, {}, {}, {});
    const int64_t tiles = cpu::winograd_tiles(geometry_) / std::max<int64_t>(1, geometry_.images);
    return std::max<int64_t>(1, all.block_tiles() / tiles);
  }

  void add_job(int64_t images, int64_t rows) {
    if (jobs_.count({images, rows})) return;
    TORCH_CHECK(floats_of(images, rows) < kMostFloats, "cnnfast: a convolution to ", size_text(writes_.size),
                " needs ", floats_of(images, rows), " values at once: too many");
    jobs_.emplace(std::pair(images, rows), job_of(images, rows));
  }
  cpu::ConvJob job_of(int64_t images, int64_t rows) const {
    cpu::ConvGeometry part = geometry_;
    part.images = images;
    part.out_height = rows;
    const StripSize in(geometry_, rows);
    const int64_t in_row = in.width * part.in_channels, out_row = part.out_width * part.out_channels;
    const View out{nullptr, rows * out_row, out_row, part.out_channels};
    return {part,
            {nullptr, in.height * in_row, in_row, part.in_channels},
            out,
            reads_.size() == 2 ? out : View{}};
  }
  const cpu::ConvJob& job(int64_t images, int64_t rows) const { return jobs_.at({images, rows}); }

  // Rows from row_begin * stride - pad on, with zeros where the padding is.
  void widen_input(const Memory& memory, int64_t image, int64_t images, const Strip& strip, float* to) const {
    const View16 from = reads_[0].view16(memory);
    const cpu::ImageSize size = reads_[0].size;
    const StripSize in(geometry_, strip.rows());
    const int64_t channels = size.channels, row = in.width * channels;
    const int64_t columns = std::min(size.width, in.width - pad_left_);
    for (int64_t n = image; n < image + images; ++n)
      for (int64_t i = 0; i < in.height; ++i, to += row) {
        const int64_t y = strip.row_begin * geometry_.stride_h - pad_top_ + i;
        if (y < 0 || y >= size.height || columns <= 0) {
          std::fill_n(to, row, 0.0f);
          continue;
        }
        std::fill_n(to, pad_left_ * channels, 0.0f);
        cpu::bf16_kernels().widen({from.data + n * from.image + y * from.row, from.pixel},
                                  {to + pad_left_ * channels, channels}, columns, channels);
        if (prologue_.scale) normalise(to + pad_left_ * channels, columns, channels);
        std::fill(to + (pad_left_ + columns) * channels, to + row, 0.0f);
      }
  }

  void normalise(float* pixels, int64_t count, int64_t channels) const {
    cpu::AffineCall call{};
    call.input = pixels;
    call.output = pixels;
    call.scale = prologue_.scale;
    call.shift = prologue_.shift;
    call.input_stride = call.output_stride = call.channels = channels;
    call.activation = prologue_.activation;
    cpu::kernels().affine(call, count);
  }

  // Channels [first, last) of the output's rows and those of `place`: body(row in the arena, row in the
  // strip).
  template <class Body>
  void for_rows(const Place& place, const Memory& memory, int64_t image, int64_t images, int64_t begin,
                int64_t end, float* rows, int64_t first, Body&& body) const {
    const View16 v = place.view16(memory);
    const int64_t channels = place.size.channels, row = place.size.width * channels;
    for (int64_t n = image; n < image + images; ++n)
      for (int64_t y = begin; y < end; ++y, rows += row)
        body(cpu::PixelRun<uint16_t>{v.data + n * v.image + y * v.row + first, v.pixel},
             cpu::PixelRun<float>{rows + first, channels});
  }

  void run_strip(const Memory& memory, const cpu::ConvJob& own, int64_t image, int64_t images,
                 const Strip& strip, int thread, int team) const {
    static const cpu::AlignedFloats none(0);
    const auto [first, last] =
        team == 1 ? std::pair<int64_t, int64_t>{0, geometry_.out_channels} : own.channels_of(thread, team);
    if (first >= last) return;
    const StripSize in(geometry_, strip.rows());
    const int64_t in_floats = round_up(images * in.height * in.width * geometry_.in_channels, 16);
    const int64_t out_floats =
        round_up(images * strip.rows() * geometry_.out_width * geometry_.out_channels, 16);
    float* input = cpu::thread_scratch(cpu::ScratchSlot::kWidened, in_floats + 3 * out_floats);
    float *output = input + in_floats, *residual = nullptr;
    widen_input(memory, image, images, strip, input);
    if (reads_.size() == 2) {
      residual = output + out_floats;
      for_rows(reads_[1], memory, image, images, strip.row_begin, strip.row_end, residual, first,
               [&, count = last - first](auto narrow, auto wide) {
                 cpu::bf16_kernels().widen({narrow.data, narrow.step}, wide, geometry_.out_width, count);
               });
    }
    own.run_at({constants_->weight, none, constants_->shift}, input, output, residual, thread, team);
    if (behind_) return pool(memory, image, strip, output, output + out_floats);
    for_rows(writes_, memory, image, images, strip.row_begin, strip.row_end, output, first,
             [&, count = last - first](auto narrow, auto wide) {
               cpu::bf16_kernels().narrow({wide.data, wide.step}, narrow, geometry_.out_width, count);
             });
  }

  // `rows` is the strip as computed, `spare` as much memory twice.
  void pool(const Memory& memory, int64_t image, const Strip& strip, float* rows, float* spare) const {
    const int64_t channels = geometry_.out_channels, row = geometry_.out_width * channels;
    if (behind_->norm) {
      const LrnParams& p = *behind_->norm;
      cpu::kernels().lrn({{rows, 0, row, channels},
                          {spare, 0, row, channels},
                          channels,
                          strip.rows(),
                          geometry_.out_width,
                          p.size,
                          static_cast<float>(p.alpha),
                          static_cast<float>(p.beta),
                          static_cast<float>(p.k)},
                         0, strip.rows());
      std::swap(rows, spare);
    }
    cpu::PoolCall call = behind_->pool;
    const int64_t pooled_row = call.width * channels;
    float* pooled =
        cpu::thread_scratch(cpu::ScratchSlot::kStrip, (strip.pool_end - strip.pool_begin) * pooled_row);
    call.input = {rows - strip.row_begin * row, 0, row, channels};
    call.output = {pooled - strip.pool_begin * pooled_row, 0, pooled_row, channels};
    pool_rows(behind_->max, call, strip.pool_begin, strip.pool_end);
    for_rows(writes_, memory, image, 1, strip.pool_begin, strip.pool_end, pooled, 0,
             [&](auto narrow, auto wide) {
               cpu::bf16_kernels().narrow({wide.data, wide.step}, narrow, writes_.size.width, channels);
             });
  }

  cpu::ConvGeometry geometry_;
  int64_t pad_top_, pad_left_;
  std::shared_ptr<const ConvConstants> constants_;
  cpu::Prologue prologue_;
  std::optional<PoolBehind> behind_;
  std::vector<Cut> cuts_;                                     // for one thread, two, more
  std::map<std::pair<int64_t, int64_t>, cpu::ConvJob> jobs_;  // by images and rows
  bool may_run_whole_ = false;
};

}  // namespace

std::unique_ptr<Step> widened_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                        int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                        Place from, Place to, const Place* residual,
                                        const cpu::Prologue& prologue, std::optional<PoolBehind> behind) {
  return std::make_unique<WidenedConv>(node, geometry, pad_top, pad_left, std::move(constants),
                                       with_optional(std::move(from), residual), std::move(to), prologue,
                                       std::move(behind));
}

}  // namespace cnnfast::plan
