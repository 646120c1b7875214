#include "cpu/conv16_job.h"

#include <algorithm>
#include <vector>

#include "cpu/cache_size.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Gathered values of a block of pixels stay in the second-level cache while all panels pass over them.
constexpr int64_t kBlockBytes = 256 * 1024;
// So does the part of the image that a block is read from.
constexpr int64_t kNearBytes = 896 * 1024;
constexpr int64_t kPixelGrain = 16;
// Fewer weights are packed by one thread.
constexpr int64_t kSerialWeights = 1 << 16;

// Pixels of a block: whole register blocks of two or three tiles.
int64_t whole_grains(int64_t pixels) {
  constexpr int64_t kBlock = 6 * kPixelGrain;
  return std::clamp<int64_t>(pixels / kBlock, 1, 24) * kBlock;
}

int64_t padded_depth(const ConvGeometry& g) { return round_up(g.depth(), kPairBlock); }

// Values of one group.
int64_t group_values(const ConvGeometry& g) { return padded_depth(g) * round_up(g.group_out(), kHalfPanel); }

// Of a block that is read where it lies.
int64_t near_pixels_of(const ConvGeometry& g) {
  constexpr int64_t kGrain = 2 * kPixelGrain, kLeast = 3, kMost = 72, kValueBytes = sizeof(uint16_t);
  // Pixels between those that a kernel steps over are not read.
  const int64_t read = std::min(g.kernel_h, g.stride_h) * std::min(g.kernel_w, g.stride_w);
  int64_t pixels = kNearBytes / (g.group_in() * read * kValueBytes);
  // Little arithmetic for every value: where weights stay in cache, all channels of a pixel are written soon
  // one after the other, so that its lines come and go once.
  const int64_t cache = second_level_cache(team_size());
  if (g.kernel_h * g.kernel_w == 1 && group_values(g) * kValueBytes <= cache / 2)
    pixels = std::min(pixels, cache / 4 / ((g.group_in() + g.group_out()) * kValueBytes));
  return std::clamp(pixels / kGrain, kLeast, kMost) * kGrain;
}

// Input channels that are moved at once, an even number: as in conv_pack.cpp.
constexpr int64_t kPackInputs = 16;

// One position of half a panel after another becomes pairs of positions.
void interleave_half(const uint16_t* __restrict even, const uint16_t* __restrict odd,
                     uint16_t* __restrict to) {
  for (int64_t c = 0; c < kHalfPanel; ++c) {
    to[2 * c] = even[c];
    to[2 * c + 1] = odd[c];
  }
}

// The pairs of one panel of one group.
class PanelPairs {
 public:
  PanelPairs(const ConvGeometry& g, int64_t channels, uint16_t* to)
      : in_(g.group_in()), stored_(round_up(channels, kHalfPanel)), to_(to) {
    std::fill_n(to, padded_depth(g) * stored_, uint16_t{0});
  }
  // Rounded kernels of input channels [first, first + count): `stored` values a tap, channel by channel.
  void add(const uint16_t* values, int64_t first, int64_t count, int64_t taps) const {
    // Of an even number of channels, a pair never ends in another tap.
    const int64_t together = in_ % 2 == 0 ? 2 : 1;
    for (int64_t i = 0; i < count; i += together)
      for (int64_t t = 0; t < taps; ++t) {
        const uint16_t* even = values + (i * taps + t) * stored_;
        const int64_t k = t * in_ + first + i;
        together == 2 ? add_pair(even, even + taps * stored_, k) : add_one(even, k);
      }
  }

 private:
  void add_pair(const uint16_t* even, const uint16_t* odd, int64_t k) const {
    for (int64_t c = 0; c < stored_; c += kHalfPanel)
      interleave_half(even + c, odd + c, half(k, c / kHalfPanel));
  }
  void add_one(const uint16_t* values, int64_t k) const {
    for (int64_t c = 0; c < stored_; ++c) half(k, c / kHalfPanel)[c % kHalfPanel * 2] = values[c];
  }
  // Where position k of a half of the panel's channels lies.
  uint16_t* half(int64_t k, int64_t h) const {
    const int64_t within = k % kPairBlock;
    return to_ + (k - within) * stored_ + h * kPairBlock * kHalfPanel + within / 2 * 2 * kHalfPanel +
           within % 2;
  }

  int64_t in_, stored_;
  uint16_t* to_;
};

// [first, first + kPanelChannels) of the channels of one group.
void pack_panel(const ConvGeometry& g, const float* weight, const WeightStrides& strides, int64_t first,
                uint16_t* to) {
  const int64_t channels = std::min(kPanelChannels, g.group_out() - first);
  const int64_t stored = round_up(channels, kHalfPanel), taps = g.kernel_h * g.kernel_w;
  const PanelPairs pairs(g, channels, to);
  // Lanes behind the last channel stay zero.
  std::vector<float> gathered(static_cast<size_t>(kPackInputs * taps * stored));
  std::vector<uint16_t> rounded(gathered.size());
  for (int64_t i = 0; i < g.group_in(); i += kPackInputs) {
    const int64_t count = std::min(kPackInputs, g.group_in() - i);
    kernels().gather_kernels({weight + first * strides.out + i * strides.in, strides.out, strides.in,
                              strides.row, strides.column, g.kernel_h, g.kernel_w, count, channels,
                              gathered.data(), taps * stored, stored});
    bf16_kernels().narrow({gathered.data(), stored}, {rounded.data(), stored}, count * taps, stored);
    pairs.add(rounded.data(), i, count, taps);
  }
}

}  // namespace

int64_t pairs_bytes(const ConvGeometry& g) {
  return g.groups * group_values(g) * static_cast<int64_t>(sizeof(uint16_t));
}

void pack_pairs_into(const ConvGeometry& g, const float* weight, const WeightStrides& strides, uint16_t* to) {
  const int64_t panels = (g.group_out() + kPanelChannels - 1) / kPanelChannels;
  const int threads = g.out_channels * g.depth() < kSerialWeights ? 1 : team_size();
  parallel_team(threads, [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(g.groups * panels, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / panels, first = unit % panels * kPanelChannels;
      pack_panel(g, weight + group * g.group_out() * strides.out, strides, first,
                 to + group * group_values(g) + first * padded_depth(g));
    }
  });
}

AlignedFloats pack_pairs(const ConvGeometry& g, const float* weight, const WeightStrides& strides) {
  AlignedFloats packed(pairs_bytes(g) / static_cast<int64_t>(sizeof(float)));
  pack_pairs_into(g, weight, strides, values16(packed));
  return packed;
}

AlignedFloats pack_panels(const ConvGeometry& g, const float* values) {
  if (!values) return AlignedFloats(0);
  const int64_t padded = round_up(g.group_out(), kPanelChannels);
  AlignedFloats packed(g.groups * padded);
  std::fill_n(packed.data(), packed.size(), 0.0f);
  for (int64_t group = 0; group < g.groups; ++group)
    std::copy_n(values + group * g.group_out(), g.group_out(), packed.data() + group * padded);
  return packed;
}

Conv16Job::Conv16Job(const ConvGeometry& geometry, View16 input, View16 output, View16 residual,
                     const Prologue& prologue, PairForm form, bool interleaves)
    : g_(geometry),
      input_(input),
      output_(output),
      residual_(residual),
      prologue_(prologue),
      form_(form),
      interleaves_(interleaves),
      panels_((g_.group_out() + kPanelChannels - 1) / kPanelChannels),
      near_pixels_(near_pixels_of(g_)) {
  // Pixels side by side are one stretch, unless tiles take each by itself.
  const bool adjacent = g_.dilation_w == 1 && input.pixel == g_.group_in();
  length_ = adjacent ? g_.kernel_w * g_.group_in() : g_.group_in();
  tap_ = taps(adjacent ? 1 : g_.kernel_w);
  const bool apart = !adjacent || g_.group_in() % kPairBlock == 0;
  tile_length_ = apart ? g_.group_in() : length_;
  tile_tap_ = taps(apart ? g_.kernel_w : 1);
}

// Where the stretches begin, so many in a row of the kernel.
std::vector<int64_t> Conv16Job::taps(int64_t columns) const {
  std::vector<int64_t> taps;
  for (int64_t y = 0; y < g_.kernel_h; ++y)
    for (int64_t x = 0; x < columns; ++x)
      taps.push_back(y * g_.dilation_h * input_.row + x * g_.dilation_w * input_.pixel);
  return taps;
}

// As ConvJob's.
bool Conv16Job::split_by_channels(int team) const {
  const int64_t units = panels_ * g_.groups;
  if (team == 1 || units < team) return false;
  const int64_t pixels = g_.images * g_.out_height * g_.out_width;
  if (pixels < team * kPixelGrain) return true;
  const int64_t pixel_values = pixels * (g_.in_channels * g_.stride_h * g_.stride_w + g_.out_channels);
  return g_.out_channels * g_.depth() > pixel_values && units % team * 10 < units;
}

void Conv16Job::run(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& m, int thread,
                    int team) const {
  const int64_t rows = g_.images * g_.out_height, units = panels_ * g_.groups;
  if (split_by_channels(team))
    return run_part(pairs, shift, m, {0, rows * g_.out_width}, share(units, 1, thread, team));
  // Blocks of vectors may have any number of pixels.
  const int64_t grain = multiplies_by_tiles() ? kPixelGrain : 1;
  const auto [begin, end] = share_pixels(rows, g_.out_width, grain, thread, team);
  run_pixels(pairs, shift, m, begin, end);
}

void Conv16Job::run_pixels(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& m,
                           int64_t begin, int64_t end) const {
  run_part(pairs, shift, m, {begin, end}, {0, panels_ * g_.groups});
}

void Conv16Job::run_part(const AlignedFloats& pairs, const AlignedFloats& shift, const Conv16Memory& m,
                         std::pair<int64_t, int64_t> pixels, std::pair<int64_t, int64_t> units) const {
  const auto [pixel_begin, pixel_end] = pixels;
  const auto [unit_begin, unit_end] = units;
  if (pixel_begin >= pixel_end) return;
  Conv16Call call{};
  call.readable = m.readable;
  call.beyond = m.beyond;
  call.images = g_.images;
  call.height = g_.out_height;
  call.width = g_.out_width;
  call.stride_h = g_.stride_h;
  call.stride_w = g_.stride_w;
  call.tap = tap_.data();
  call.taps = static_cast<int64_t>(tap_.size());
  call.length = length_;
  call.tile_tap = tile_tap_.data();
  call.tile_taps = static_cast<int64_t>(tile_tap_.size());
  call.tile_length = tile_length_;
  call.channels = g_.group_out();
  call.short_pairs = form_ == PairForm::kShort;
  call.interleaves = interleaves_;
  const int64_t operand = bf16_kernels().multiplies ? sizeof(uint16_t) : sizeof(float);
  call.block_pixels = whole_grains(kBlockBytes / (padded_depth(g_) * operand));
  call.near_pixels = near_pixels_;
  call.activation = g_.activation;
  call.in_scale = m.image_scale ? m.image_scale : prologue_.scale;
  call.in_scale_image = m.image_scale ? g_.in_channels : 0;
  call.in_shift = prologue_.shift;
  call.in_activation = prologue_.activation;
  const int64_t bytes = bf16_kernels().conv_scratch(call);
  call.scratch = thread_scratch(ScratchSlot::kGathered, (bytes + 3) / 4);
  for (int64_t group = 0; group < g_.groups; ++group) {
    const int64_t first = std::max(unit_begin, group * panels_) - group * panels_;
    const int64_t last = std::min(unit_end, (group + 1) * panels_) - group * panels_;
    if (first >= last) continue;
    const int64_t in = group * g_.group_in(), out = group * g_.group_out();
    call.input = {const_cast<uint16_t*>(m.input) + in, input_.image, input_.row, input_.pixel};
    call.output = {m.output + out, output_.image, output_.row, output_.pixel};
    call.residual = {m.residual ? const_cast<uint16_t*>(m.residual) + out : nullptr, residual_.image,
                     residual_.row, residual_.pixel};
    call.weight = values16(pairs) + group * group_values(g_);
    call.shift = shift.size() ? shift.data() + group * round_up(g_.group_out(), kPanelChannels) : nullptr;
    bf16_kernels().conv(call, pixel_begin, pixel_end, first, last);
  }
}

}  // namespace cnnfast::cpu
