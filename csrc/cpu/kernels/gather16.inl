// Values of pixels in the order of their dot products. Part of conv16.inl.

// The values of one pixel in the order of the dot product, zeros behind them.
template <class Dot>
void gather_pixel(const Conv16Call& c, const uint16_t* from, typename Dot::Operand* to) {
  const int64_t taps = c.taps, length = c.length;
  const int64_t* const tap = c.tap;
  // The last block, of which values may fill a part.
  __builtin_memset(to + padded_depth(c) - kPairBlock, 0, kPairBlock * sizeof(*to));
  for (int64_t t = 0; t < taps; ++t, to += length) Dot::gather(from + tap[t], length, to);
}

// Blocks of short stretches, as those of first layers are: every block of a pixel is put together in a
// register from parts of stretches and stored once. Copies of stretches would cross lines of the cache.
constexpr int kMostParts = 6;
constexpr int64_t kMostShort = 128;

// The stretches that a block meets: where their values would lie if lane 0 were one, and their lanes.
struct BlockParts {
  int64_t offset[kMostParts];
  uint32_t lanes[kMostParts];
  int count;
};

inline bool takes_parts(const Conv16Call& c) {
  if (c.length % kPairBlock == 0 || c.length > kMostShort) return false;
  return c.taps <= kMostParts || (kPairBlock - 2) / c.length + 2 <= kMostParts;
}

inline BlockParts parts_of_block(const Conv16Call& c, int64_t first) {
  BlockParts parts{};
  for (int64_t t = first / c.length; t < c.taps && t * c.length < first + kPairBlock; ++t) {
    const int64_t begin = t * c.length - first, end = begin + c.length;
    const int64_t from = begin > 0 ? begin : 0, to = end < kPairBlock ? end : kPairBlock;
    parts.offset[parts.count] = c.tap[t] - begin;
    parts.lanes[parts.count++] = static_cast<uint32_t>(((uint64_t{1} << (to - from)) - 1) << from);
  }
  return parts;
}

// One block of every pixel.
template <class Dot, bool kReads, int N>
void gather_parts(const BlockParts& parts, const OutputPixel* pixels, int64_t count, int64_t step,
                  uint16_t* to) {
  if constexpr (N > 1) {
    if (parts.count < N) return gather_parts<Dot, kReads, N - 1>(parts, pixels, count, step, to);
  }
  const BlockParts own = parts;  // in registers: stores might change others
  for (int64_t p = 0; p < count; ++p, to += step) {
    auto block = Dot::no_values();
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const uint16_t* from = pixels[p].input + own.offset[i];
      block = kReads ? Dot::with_read(block, from, own.lanes[i]) : Dot::with(block, from, own.lanes[i]);
    }
    Dot::store(block, to);
  }
}

// Whether whole blocks around these pixels' parts lie in memory that may be read.
inline bool may_read(const Conv16Call& c, const BlockParts& parts, const OutputPixel* pixels, int64_t count) {
  for (int i = 0; i < parts.count; ++i) {
    if (pixels[0].input + parts.offset[i] < c.readable) return false;
    if (pixels[count - 1].input + parts.offset[i] + kPairBlock > c.beyond) return false;
  }
  return true;
}

template <class Dot>
void gather_short(const Conv16Call& c, const OutputPixel* pixels, int64_t count, uint16_t* to) {
  for (int64_t first = 0; first < padded_depth(c); first += kPairBlock) {
    const BlockParts parts = parts_of_block(c, first);
    (may_read(c, parts, pixels, count)
         ? gather_parts<Dot, true, kMostParts>
         : gather_parts<Dot, false, kMostParts>)(parts, pixels, count, gathered_step(c), to + first);
  }
}

// What a value becomes on the way in.
class InputNorm {
 public:
  InputNorm(const Conv16Call& c, int64_t image)
      : c_(c),
        scale_(c.in_scale + image * c.in_scale_image),
        is_short_(in_registers(c.in_activation)),
        short_(c.in_activation) {}
  Vec whole(Vec x, int64_t i) const {
    return activated(Vec::fma(x, Vec::load(scale_ + i), Vec::load(c_.in_shift + i)));
  }
  Vec first(Vec x, int64_t i, int64_t count) const {
    return activated(
        Vec::fma(x, Vec::load_first(scale_ + i, count), Vec::load_first(c_.in_shift + i, count)));
  }

 private:
  Vec activated(Vec x) const { return is_short_ ? short_.of(x) : apply_long(c_.in_activation, x); }

  const Conv16Call& c_;
  const float* scale_;
  bool is_short_;
  ShortActivation short_;
};

inline void normalise_pixel(const Conv16Call& c, const InputNorm& norm, const uint16_t* from, uint16_t* to) {
  constexpr int64_t kWidth = Vec::kWidth;
  int64_t i = 0;
  for (; i + 2 * kWidth <= c.length; i += 2 * kWidth)
    Bf16::store_two_sums(norm.whole(Bf16::load(from + i), i),
                         norm.whole(Bf16::load(from + i + kWidth), i + kWidth), to + i);
  for (; i < c.length; i += kWidth) {
    const int64_t rest = c.length - i;
    if (rest >= kWidth)
      Bf16::store_sum(norm.whole(Bf16::load(from + i), i), to + i);
    else
      Bf16::store_first(norm.first(Bf16::load_first(from + i, rest), i, rest), to + i, rest);
  }
}

inline void normalise_pixel(const Conv16Call& c, const InputNorm& norm, const uint16_t* from, float* to) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= c.length; i += Vec::kWidth) norm.whole(Bf16::load(from + i), i).store(to + i);
  if (const int64_t rest = c.length - i; rest > 0)
    norm.first(Bf16::load_first(from + i, rest), i, rest).store_first(to + i, rest);
}

// As gather_pixel, of a kernel of one pixel.
template <class Operand>
void gather_normalised(const Conv16Call& c, const InputNorm& norm, const uint16_t* from, Operand* to) {
  __builtin_memset(to + padded_depth(c) - kPairBlock, 0, kPairBlock * sizeof(*to));
  normalise_pixel(c, norm, from, to);
}

// Image by image, as each may have factors of its own.
template <class Operand>
void gather_normalised_pixels(const Conv16Call& c, const OutputPixel* pixels, int64_t first, int64_t count,
                              Operand* values) {
  const int64_t plane = c.height * c.width;
  for (int64_t p = 0; p < count;) {
    const int64_t left = plane - (first + p) % plane, end = left < count - p ? p + left : count;
    const InputNorm norm(c, (first + p) / plane);
    for (; p < end; ++p, values += gathered_step(c)) gather_normalised(c, norm, pixels[p].input, values);
  }
}

// first: the number of the first pixel, over all images.
template <class Dot>
void gather_pixels(const Conv16Call& c, const OutputPixel* pixels, int64_t first, int64_t count,
                   typename Dot::Operand* values) {
  if (c.in_scale) return gather_normalised_pixels(c, pixels, first, count, values);
  if constexpr (Dot::kAsStored) {
    if (takes_parts(c)) return gather_short<Dot>(c, pixels, count, values);
  }
  for (int64_t p = 0; p < count; ++p, values += gathered_step(c))
    gather_pixel<Dot>(c, pixels[p].input, values);
}
