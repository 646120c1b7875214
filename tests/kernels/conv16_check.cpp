// The bfloat16 kernels against sums in double and largest values, AMX tiles and AVX512-BF16 products
// emulated. Every buffer ends where its last value ends, so that a sanitizer sees each read beyond; outputs
// are poisoned first.
#define CNNFAST_EMULATE_AMX
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

// clang-format off: kernels want their vector type first
#include "cpu/vec16/portable.h"
#include "cpu/kernels/bf16_table.inl"
#include "cpu/kernels/conv_amx.inl"
#include "cpu/kernels/weight_gradient16.inl"
#include "cpu/kernels/weight_gradient_amx.inl"
// clang-format on
#include "cpu/short_panel.h"

namespace {

float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return 0x7fc0;
  const uint32_t lower = bits & 0xffffu, upper = bits >> 16;
  return static_cast<uint16_t>(upper + (lower > 0x8000u || (lower == 0x8000u && (upper & 1u))));
}

// Half the distance of two bfloat16 values near x.
double half_step(double x) { return x == 0 ? 0.0 : std::ldexp(1.0, std::ilogb(x) - 8); }

// What AVX512-BF16 does, but for denormal values.
struct EmulatedDot {
  using Operand = uint16_t;
  static constexpr bool kAsStored = true;
  static constexpr int64_t kNarrow = Vec::kWidth / 2;
  struct Weights {
    Vec even, odd;
  };
  static void gather(const uint16_t* from, int64_t count, uint16_t* to) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(uint16_t));
  }
  struct Block {
    uint16_t value[kPairBlock];
  };
  static Block no_values() { return {}; }
  static Block with(Block block, const uint16_t* from, uint32_t lanes) {
    for (int64_t i = 0; i < kPairBlock; ++i)
      if (lanes >> i & 1u) block.value[i] = from[i];
    return block;
  }
  static Block with_read(Block block, const uint16_t* from, uint32_t lanes) {
    Block all;
    std::memcpy(&all, from, sizeof(all));
    return with(block, all.value, lanes);
  }
  static void store(const Block& block, uint16_t* to) { std::memcpy(to, &block, sizeof(block)); }
  static Weights load(const uint16_t* pairs) {
    Weights w;
    Bf16::load_pairs(pairs, w.even, w.odd);
    return w;
  }
  using Spread = const uint16_t*;
  static Spread spread(const uint16_t* pair) { return pair; }
  // Lanes that half a vector does not have are no numbers.
  static Vec add_narrow(const Weights& w, Spread pair, Vec acc) {
    float lanes[Vec::kWidth];
    add(w, pair, acc).store(lanes);
    for (int64_t i = kNarrow; i < Vec::kWidth; ++i) lanes[i] = NAN;
    return Vec::load(lanes);
  }
  static Vec add(const Weights& w, const uint16_t* pair, Vec acc) {
    return acc + (Vec::set1(widened(pair[0])) * w.even + Vec::set1(widened(pair[1])) * w.odd);
  }
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float value() { return static_cast<float>(below(2001) - 1000) / 500.0f; }

 private:
  uint64_t state_;
};

struct Case {
  int64_t images, height, width, in, out, kernel_h, kernel_w, stride_h, stride_w, dilation_w, pad, in_slice,
      out_slice;
  bool residual, shift, norm, per_image;
  Activation activation, in_activation;
  int64_t block_pixels, near_pixels;
  uint16_t special;  // a NaN or Inf somewhere in the input; 0: none
  uint16_t rare;     // some weights' bits, whose exponents few others have; 0: none
};

constexpr uint16_t kPoison = 0x7fab;

class Check {
 public:
  explicit Check(const Case& c, uint64_t seed) : c_(c), random_(seed) {
    padded_h_ = c.height + 2 * c.pad;
    padded_w_ = c.width + 2 * c.pad;
    out_h_ = (padded_h_ - c.kernel_h) / c.stride_h + 1;
    out_w_ = (padded_w_ - (c.kernel_w - 1) * c.dilation_w - 1) / c.stride_w + 1;
    in_pixel_ = c.in + c.in_slice;
    out_pixel_ = c.out + c.out_slice;
    fill();
    pack();
  }

  using Kernel = void (*)(const Conv16Call&, int64_t, int64_t, int64_t, int64_t);
  int64_t tiles() {
    const Conv16Call call = this->call();
    if (call.length % kPairBlock != 0) return 0;
    const int64_t pixels = c_.images * out_h_ * out_w_;
    std::vector<PixelTile> built(static_cast<size_t>(most_tiles(call)));
    return straight_tiles(call, Pixel16Walk(call, 0), near_count(call, pixels), built.data());
  }

  bool in_place() { return reads_straight<EmulatedDot>(call()); }

  // With the weights as short pairs, whose results are those of `kernel` with whole ones, which ran before.
  int64_t run_short(const char* name, Kernel kernel, int64_t (*scratch_bytes)(const Conv16Call&)) {
    const std::vector<uint16_t> whole = output_;
    shorten();
    Conv16Call call = this->call();
    call.weight = reinterpret_cast<const uint16_t*>(short_.data());
    call.short_pairs = true;
    const int64_t wrong = run_call(name, kernel, scratch_bytes, call);
    if (output_ != whole) std::printf("%s: not what whole pairs give\n", name);
    return wrong + (output_ != whole);
  }
  // Channels in turn with those of an image beside it.
  int64_t run_interleaved(const char* name, Kernel kernel, int64_t (*scratch_bytes)(const Conv16Call&)) {
    const std::vector<uint16_t> plain = output_;
    const bool added = c_.residual;
    c_.residual = false;
    interleaved_ = true;
    output_.resize(2 * plain.size());
    Conv16Call call = this->call();
    call.output = {output_.data(), 2 * out_h_ * out_w_ * out_pixel_, 2 * out_w_ * out_pixel_, 2 * out_pixel_};
    call.residual = out_view(residual_);
    call.interleaves = true;
    const int64_t wrong = run_call(name, kernel, scratch_bytes, call);
    interleaved_ = false;
    c_.residual = added;
    output_ = plain;
    return wrong;
  }
  // Blocks that short pairs leave as they are.
  int64_t stored_blocks() const { return stored_; }

  // Number of wrong values.
  int64_t run(const char* name, Kernel kernel, int64_t (*scratch_bytes)(const Conv16Call&)) {
    return run_call(name, kernel, scratch_bytes, call());
  }
  // A kernel whose operands are floats: values normalised on the way in are not rounded.
  int64_t run_floats(const char* name, Kernel kernel, int64_t (*scratch_bytes)(const Conv16Call&)) {
    rounds_ = false;
    const int64_t wrong = run(name, kernel, scratch_bytes);
    rounds_ = true;
    return wrong;
  }

 private:
  // Pixels and panels in two shares each, as threads would take them.
  int64_t run_call(const char* name, Kernel kernel, int64_t (*scratch_bytes)(const Conv16Call&),
                   Conv16Call call) {
    output_.assign(output_.size(), kPoison);
    std::vector<float> scratch(static_cast<size_t>(scratch_bytes(call) + 3) / 4 + 16);
    call.scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    const int64_t pixels = c_.images * out_h_ * out_w_, panels = (c_.out + 31) / 32;
    const int64_t cut = pixels / 3, panel_cut = panels / 2;
    for (const auto& [first, last] : {std::pair<int64_t, int64_t>{0, cut}, {cut, pixels}})
      for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, panel_cut}, {panel_cut, panels}})
        if (first < last && begin < end) kernel(call, first, last, begin, end);
    return compare(name);
  }

  // As short_pairs.h says it; the memory ends with the last panel.
  void shorten() {
    const int64_t depth = (c_.kernel_h * c_.kernel_w * c_.in + 31) / 32 * 32, panels = (c_.out + 31) / 32;
    std::vector<int64_t> offset(static_cast<size_t>((panels + 7) / 8 * 8));
    std::vector<uint8_t> memory;
    for (int64_t p = 0; p < panels; ++p) {
      const ShortPanelWriter panel(packed_.data() + p * 32 * depth, c_.out - p * 32 > 16 ? 2 : 1, depth / 32);
      const size_t first = memory.size();
      offset[p] = static_cast<int64_t>(offset.size() * sizeof(int64_t) + first);
      memory.resize(first + panel.bytes());
      panel.write(memory.data() + first);
      for (int64_t b = 0; b < depth / 32; ++b) stored_ += memory[first + 32 + b];
    }
    short_.resize(offset.size() + memory.size() / sizeof(int64_t));
    std::memcpy(short_.data(), offset.data(), offset.size() * sizeof(int64_t));
    std::memcpy(short_.data() + offset.size(), memory.data(), memory.size());
  }

  void fill() {
    input_.resize(static_cast<size_t>((c_.images * padded_h_ * padded_w_ - 1) * in_pixel_ + c_.in));
    for (uint16_t& x : input_) x = kPoison;
    for (int64_t n = 0; n < c_.images; ++n)
      for (int64_t y = 0; y < padded_h_; ++y)
        for (int64_t x = 0; x < padded_w_; ++x)
          for (int64_t i = 0; i < c_.in; ++i) {
            const bool inside = y >= c_.pad && y < c_.pad + c_.height && x >= c_.pad && x < c_.pad + c_.width;
            input_[at_input(n, y, x, i)] = inside ? rounded(random_.value()) : uint16_t{0};
          }
    if (c_.special)
      input_[at_input(random_.below(c_.images), c_.pad + random_.below(c_.height),
                      c_.pad + random_.below(c_.width), random_.below(c_.in))] = c_.special;
    for (int64_t i = 0; i < c_.out * c_.kernel_h * c_.kernel_w * c_.in; ++i)
      weight_.push_back(rounded(random_.value()));
    for (int64_t i = 0; c_.rare && i < 10; ++i)
      weight_[random_.below(static_cast<int64_t>(weight_.size()))] = c_.rare ^ static_cast<uint16_t>(i << 8);
    for (int64_t i = 0; i < (c_.out + 31) / 32 * 32; ++i) shift_.push_back(random_.value());
    // Products with powers of two are exact: rounded once, with and without a fused addition.
    const float scales[] = {0.5f, 1.0f, 2.0f, -1.0f};
    for (int64_t i = 0; i < c_.images * c_.in; ++i) in_scale_.push_back(scales[random_.below(4)]);
    for (int64_t i = 0; i < c_.in; ++i) in_shift_.push_back(random_.value());
    output_.resize(static_cast<size_t>((c_.images * out_h_ * out_w_ - 1) * out_pixel_ + c_.out));
    for (size_t i = 0; i < output_.size(); ++i) residual_.push_back(rounded(random_.value()));
    const bool adjacent = c_.dilation_w == 1 && in_pixel_ == c_.in;
    for (int64_t y = 0; y < c_.kernel_h; ++y)
      for (int64_t x = 0; x < (adjacent ? 1 : c_.kernel_w); ++x)
        tap_.push_back((y * padded_w_ + x * c_.dilation_w) * in_pixel_);
    length_ = adjacent ? c_.kernel_w * c_.in : c_.in;
  }

  // Position k of the dot product and channel, as the table's header says it.
  void pack() {
    const int64_t depth = c_.kernel_h * c_.kernel_w * c_.in, padded = (depth + 31) / 32 * 32;
    for (int64_t panel = 0; panel < c_.out; panel += 32)
      for (int64_t k0 = 0; k0 < padded; k0 += 32)
        for (int64_t half = 0; half < (c_.out - panel > 16 ? 2 : 1); ++half)
          for (int64_t k = k0; k < k0 + 32; k += 2)
            for (int64_t channel = panel + 16 * half; channel < panel + 16 * half + 16; ++channel)
              for (int64_t i = k; i < k + 2; ++i)
                packed_.push_back(channel < c_.out && i < depth ? weight_[channel * depth + i] : uint16_t{0});
  }

  size_t at_input(int64_t n, int64_t y, int64_t x, int64_t i) const {
    return static_cast<size_t>(((n * padded_h_ + y) * padded_w_ + x) * in_pixel_ + i);
  }
  View16 out_view(std::vector<uint16_t>& memory) const {
    return {memory.data(), out_h_ * out_w_ * out_pixel_, out_w_ * out_pixel_, out_pixel_};
  }

  Conv16Call call() {
    Conv16Call call{};
    call.input = {input_.data(), padded_h_ * padded_w_ * in_pixel_, padded_w_ * in_pixel_, in_pixel_};
    call.output = out_view(output_);
    call.residual = c_.residual ? out_view(residual_) : View16{nullptr, 0, 0, 0};
    call.readable = input_.data();
    call.beyond = input_.data() + input_.size();
    call.images = c_.images;
    call.height = out_h_;
    call.width = out_w_;
    call.stride_h = c_.stride_h;
    call.stride_w = c_.stride_w;
    call.tap = tap_.data();
    call.taps = static_cast<int64_t>(tap_.size());
    call.length = call.tile_length = length_;
    call.tile_tap = tap_.data();
    call.tile_taps = call.taps;
    call.weight = packed_.data();
    call.shift = c_.shift ? shift_.data() : nullptr;
    call.channels = c_.out;
    call.block_pixels = c_.block_pixels;
    call.near_pixels = c_.near_pixels;
    call.activation = c_.activation;
    call.in_scale = c_.norm ? in_scale_.data() : nullptr;
    call.in_scale_image = c_.per_image ? c_.in : 0;
    call.in_shift = c_.norm ? in_shift_.data() : nullptr;
    call.in_activation = c_.in_activation;
    return call;
  }

  int64_t compare(const char* name) {
    int64_t wrong = 0;
    for (int64_t n = 0; n < c_.images; ++n)
      for (int64_t y = 0; y < out_h_; ++y)
        for (int64_t x = 0; x < out_w_; ++x) {
          const int64_t first = ((n * out_h_ + y) * out_w_ + x) * out_pixel_;
          for (int64_t o = 0; o < c_.out; ++o) {
            double size = 0;
            const double exact = truth(n, y, x, o, first, size);
            const double wanted = std::abs(exact) > FLT_MAX ? std::copysign(INFINITY, exact) : exact;
            const double got = widened(output_[interleaved_ ? 2 * (first + o) + 1 : first + o]);
            if (interleaved_ && output_[2 * (first + o)] != residual_[first + o] && ++wrong < 4)
              std::printf("%s: another image's channel %ld is not there\n", name, static_cast<long>(o));
            // Sums on the way may overflow where terms do together.
            const bool overflows = size > FLT_MAX && !std::isfinite(got);
            const bool fits = std::isfinite(wanted)
                                  ? overflows || std::abs(got - wanted) <= half_step(wanted) + 2e-6 * size
                                  : (std::isnan(wanted) ? std::isnan(got) : got == wanted);
            if (!fits && ++wrong < 4)
              std::printf("%s: image %ld row %ld column %ld channel %ld: %g instead of %g\n", name,
                          static_cast<long>(n), static_cast<long>(y), static_cast<long>(x),
                          static_cast<long>(o), got, wanted);
          }
          const bool last = n == c_.images - 1 && y == out_h_ - 1 && x == out_w_ - 1;
          const int64_t of_each = interleaved_ ? 2 : 1;
          for (int64_t o = of_each * c_.out; o < of_each * (last ? c_.out : out_pixel_); ++o)
            if (output_[of_each * first + o] != kPoison && ++wrong < 4)
              std::printf("%s: wrote beside its slice\n", name);
        }
    return wrong;
  }

  double truth(int64_t n, int64_t y, int64_t x, int64_t o, int64_t place, double& size) {
    double sum = c_.shift ? shift_[o] : 0.0;
    size = std::abs(sum);
    const uint16_t* w = weight_.data() + o * c_.kernel_h * c_.kernel_w * c_.in;
    for (int64_t ky = 0; ky < c_.kernel_h; ++ky)
      for (int64_t kx = 0; kx < c_.kernel_w; ++kx)
        for (int64_t i = 0; i < c_.in; ++i, ++w) {
          const double term =
              static_cast<double>(operand(n, y * c_.stride_h + ky, x * c_.stride_w + kx * c_.dilation_w, i)) *
              widened(*w);
          sum += term;
          size += std::abs(term);
        }
    if (c_.residual) sum += widened(residual_[place + o]);
    return activated(c_.activation, sum);
  }

  template <class T>
  static T activated(const Activation& activation, T x) {
    if (activation.kind == Activation::kReLU) return x < 0 ? 0 : x;
    if (activation.kind == Activation::kClamp)
      return x < activation.a ? activation.a : x > activation.b ? activation.b : x;
    if (activation.kind == Activation::kSigmoid) return 1 / (1 + std::exp(-x));
    return x;
  }

  // What is multiplied, normalised where the case says so.
  float operand(int64_t n, int64_t y, int64_t x, int64_t i) const {
    const float value = widened(input_[at_input(n, y, x, i)]);
    if (!c_.norm) return value;
    const float scale = in_scale_[i + (c_.per_image ? n * c_.in : 0)];
    const float normalised = activated(c_.in_activation, value * scale + in_shift_[i]);
    return rounds_ ? widened(rounded(normalised)) : normalised;
  }

  Case c_;
  Random random_;
  int64_t padded_h_, padded_w_, out_h_, out_w_, in_pixel_, out_pixel_, length_ = 0;
  std::vector<uint16_t> input_, output_, residual_, weight_, packed_;
  std::vector<float> shift_, in_scale_, in_shift_;
  std::vector<int64_t> tap_, short_;
  bool rounds_ = true, interleaved_ = false;
  int64_t stored_ = 0;
};

Case drawn(Random& random) {
  Case c{};
  const int64_t channels[] = {1, 3, 8, 19, 31, 32, 33, 64, 96, 320};
  const int64_t outputs[] = {1, 5, 16, 17, 32, 33, 47, 64, 80};
  c.images = 1 + random.below(3);
  c.height = 1 + random.below(12);
  c.width = 1 + random.below(37);
  c.in = channels[random.below(10)];
  c.out = outputs[random.below(9)];
  c.pad = random.below(3);
  const int64_t most_h = c.height + 2 * c.pad, most_w = c.width + 2 * c.pad;
  c.kernel_h = 1 + random.below(most_h < 5 ? most_h : 5);
  c.kernel_w = 1 + random.below(most_w < 5 ? most_w : 5);
  c.stride_h = 1 + random.below(2);
  c.stride_w = 1 + random.below(3);
  c.dilation_w = c.kernel_w > 1 && (c.kernel_w - 1) * 2 < most_w && random.below(4) == 0 ? 2 : 1;
  c.in_slice = random.below(3) == 0 ? 1 + random.below(40) : 0;
  c.out_slice = random.below(3) == 0 ? 1 + random.below(40) : 0;
  c.residual = random.below(2) == 0;
  c.shift = random.below(2) == 0;
  const Activation kinds[] = {{Activation::kNone, 0.0f, 0.0f},
                              {Activation::kReLU, 0.0f, 0.0f},
                              {Activation::kClamp, -0.5f, 1.25f},
                              {Activation::kSigmoid, 0.0f, 0.0f}};
  c.activation = kinds[random.below(4)];
  c.in_activation = kinds[random.below(3)];
  c.block_pixels = 16 * (1 + random.below(6));
  c.near_pixels = 32 * (1 + random.below(10));
  const uint16_t specials[] = {0, 0, 0, 0x7fc0, 0x7f80};
  c.special = specials[random.below(5)];
  const uint16_t rare[] = {0, 0, 0x2000, 0xa055, 0x7f80, 0xc0f1};
  c.rare = rare[random.below(6)];
  if (random.below(4) == 0) {  // pixels side by side, as most layers of one pixel have them
    c.kernel_h = c.kernel_w = c.stride_h = c.stride_w = c.dilation_w = 1;
    c.pad = 0;
    c.norm = random.below(2) == 0;
    c.per_image = random.below(2) == 0;
  }
  return c;
}

std::string text(const Case& c) {
  char line[300];
  std::snprintf(
      line, sizeof(line),
      "%ld images %ldx%ld, %ld to %ld channels, kernel %ldx%ld, stride %ldx%ld, dilation %ld, pad %ld, "
      "slices %ld %ld, residual %d, shift %d, norm %d, activation %d, block %ld, special %x, rare weight %x",
      static_cast<long>(c.images), static_cast<long>(c.height), static_cast<long>(c.width),
      static_cast<long>(c.in), static_cast<long>(c.out), static_cast<long>(c.kernel_h),
      static_cast<long>(c.kernel_w), static_cast<long>(c.stride_h), static_cast<long>(c.stride_w),
      static_cast<long>(c.dilation_w), static_cast<long>(c.pad), static_cast<long>(c.in_slice),
      static_cast<long>(c.out_slice), c.residual, c.shift, c.norm, static_cast<int>(c.activation.kind),
      static_cast<long>(c.block_pixels), c.special, c.rare);
  return line;
}

// The rounding of the vector type against one written with integers.
int64_t check_rounding() {
  Random random(7);
  int64_t wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits =
        i < 4096 ? static_cast<uint32_t>(i) << 20 | 0x8000u : static_cast<uint32_t>(random.next());
    float x[4];
    uint16_t stored[4];
    for (float& lane : x) std::memcpy(&lane, &bits, sizeof(bits));
    Bf16::store(Vec::load(x), stored);
    const bool nan = std::isnan(x[0]);
    wrong += nan ? !std::isnan(widened(stored[3])) : stored[3] != rounded(x[0]);
  }
  return wrong;
}

// Pixels that lie apart, to floats and back.
int64_t check_rows() {
  Random random(9);
  int64_t wrong = 0;
  for (const int64_t channels : {1, 3, 4, 7, 16, 33})
    for (const int64_t apart : {0, 1, 5}) {
      const int64_t pixels = 6, step = channels + apart;
      std::vector<uint16_t> from(static_cast<size_t>((pixels - 1) * step + channels)),
          to(from.size(), kPoison);
      std::vector<float> floats(static_cast<size_t>(pixels * channels));
      for (uint16_t& x : from) x = rounded(random.value());
      widen({from.data(), step}, {floats.data(), channels}, pixels, channels);
      narrow({floats.data(), channels}, {to.data(), step}, pixels, channels);
      for (int64_t i = 0; i < static_cast<int64_t>(from.size()); ++i)
        wrong += to[i] != (i % step < channels ? from[i] : kPoison);
    }
  return wrong;
}

// Any bits but those of numbers near the largest: NaN of both signs, infinities, zeros of both signs.
uint16_t drawn_bits(Random& random) {
  const uint16_t special[] = {0x7fc0, 0xffc1, 0x7f80, 0xff80, 0x0000, 0x8000, 0x7f7f, 0x0001};
  return random.below(12) == 0 ? special[random.below(8)] : rounded(random.value());
}

PoolCall drawn_window(Random& random) {
  PoolCall w{};
  w.channels = 1 + random.below(30);
  w.in_height = 1 + random.below(9);
  w.in_width = 1 + random.below(9);
  w.kernel_h = 1 + random.below(3), w.kernel_w = 1 + random.below(3);
  w.stride_h = 1 + random.below(3), w.stride_w = 1 + random.below(3);
  w.dilation_h = 1 + random.below(2), w.dilation_w = 1 + random.below(2);
  w.pad_h = random.below(w.kernel_h / 2 + 1), w.pad_w = random.below(w.kernel_w / 2 + 1);
  // Down to windows that begin on the last row and column, as with ceil_mode.
  w.height = 1 + random.below((w.in_height - 1 + w.pad_h) / w.stride_h + 1);
  w.width = 1 + random.below((w.in_width - 1 + w.pad_w) / w.stride_w + 1);
  return w;
}

float largest(const PoolCall& w, const std::vector<uint16_t>& image, int64_t step, int64_t y, int64_t x,
              int64_t channel) {
  float best = -INFINITY;
  for (int64_t i = 0; i < w.kernel_h; ++i)
    for (int64_t j = 0; j < w.kernel_w; ++j) {
      const int64_t row = y * w.stride_h - w.pad_h + i * w.dilation_h;
      const int64_t column = x * w.stride_w - w.pad_w + j * w.dilation_w;
      if (row < 0 || row >= w.in_height || column < 0 || column >= w.in_width) continue;
      const float value = widened(image[static_cast<size_t>((row * w.in_width + column) * step + channel)]);
      if (std::isnan(value) || value > best) best = value;
      if (std::isnan(best)) return best;
    }
  return best;
}

// Slices of images on both sides.
int64_t check_max_pool() {
  Random random(11);
  int64_t wrong = 0;
  for (int i = 0; i < 400; ++i) {
    const PoolCall w = drawn_window(random);
    const int64_t in_step = w.channels + random.below(3), out_step = w.channels + random.below(3);
    const auto held = [&](int64_t pixels, int64_t step) {
      return static_cast<size_t>((pixels - 1) * step + w.channels);
    };
    std::vector<uint16_t> from(held(w.in_height * w.in_width, in_step)),
        to(held(w.height * w.width, out_step), kPoison);
    for (uint16_t& x : from) x = drawn_bits(random);
    // As behind a ReLU, now and then but for one value.
    if (random.below(2) == 0) {
      for (uint16_t& x : from) x &= 0x7fffu;
      if (random.below(3) == 0)
        from[static_cast<size_t>(random.below(static_cast<int64_t>(from.size())))] |= 0x8000u;
    }
    MaxPool16Call call{w,
                       {from.data(), 0, w.in_width * in_step, in_step},
                       {to.data(), 0, w.width * out_step, out_step},
                       nullptr};
    alignas(64) unsigned char scratch[16 * sizeof(Keys<kKeyWidth>)];
    wrong += max_pool_scratch(call) > static_cast<int64_t>(sizeof(scratch));
    call.scratch = scratch;
    const int64_t first = random.below(w.height);
    max_pool16(call, first, w.height);
    for (int64_t at = 0; at < static_cast<int64_t>(to.size()); ++at) {
      const int64_t pixel = at / out_step, channel = at % out_step, y = pixel / w.width;
      if (y < first || channel >= w.channels) {
        wrong += to[at] != kPoison;
        continue;
      }
      const float wanted = largest(w, from, in_step, y, pixel % w.width, channel), got = widened(to[at]);
      wrong += std::isnan(wanted) ? !std::isnan(got) : got != wanted;
    }
  }
  return wrong;
}

}  // namespace

#include "gradient16_check.h"

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoi(arguments[1]) : 300;
  int64_t wrong = check_rounding(), straight = 0, in_place = 0, stored = 0;
  wrong += check_rows() + check_max_pool() + check_activation_backward();
  if (wrong) std::printf("rounding, rows or pooling: %ld wrong\n", static_cast<long>(wrong));
  Tiles::configure();
  const int64_t gradients = check_gradients(cases / 10);
  if (gradients) std::printf("gradients of weights: %ld wrong\n", static_cast<long>(gradients));
  wrong += gradients;
  for (int64_t i = 0; i < cases; ++i) {
    Random random(static_cast<uint64_t>(i) + 100);
    const Case c = drawn(random);
    Check check(c, static_cast<uint64_t>(i));
    straight += check.tiles() > 0;
    in_place += check.in_place();
    const int64_t before = wrong;
    wrong += check.run("amx", amx_conv<EmulatedDot>, amx_scratch<EmulatedDot>);
    wrong += check.run("pairs", gathered_conv<EmulatedDot>, gather_scratch<EmulatedDot>);
    wrong += check.run_interleaved("in turn", gathered_conv<EmulatedDot>, gather_scratch<EmulatedDot>);
    wrong += check.run_short("short pairs", gathered_conv<EmulatedDot>, gather_scratch<EmulatedDot>);
    stored += check.stored_blocks() > 0;
    wrong += check.run_floats("widened", gathered_conv<WidenedDot>, gather_scratch<WidenedDot>);
    if (wrong != before) std::printf("case %ld: %s\n", static_cast<long>(i), text(c).c_str());
  }
  Tiles::release();
  std::printf(
      "%ld cases, %ld with tiles loaded from the image, %ld with pairs read there, %ld with blocks that are "
      "no short pairs, %ld wrong values\n",
      static_cast<long>(cases), static_cast<long>(straight), static_cast<long>(in_place),
      static_cast<long>(stored), static_cast<long>(wrong));
  return wrong != 0;
}
