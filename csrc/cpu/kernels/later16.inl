// What is asked for while products run. Part of conv16.inl.

// Memory that is read later, rows of it, asked for while products run: so many bytes with every register
// block, or with every part of a long one. Many lines at once would keep others waiting.
class LaterValues {
 public:
  LaterValues() = default;
  LaterValues(const uint16_t* from, int64_t values, int64_t parts) : LaterValues(from, values, 1, 0, parts) {}
  LaterValues(const uint16_t* from, int64_t values, int64_t rows, int64_t row, int64_t parts)
      : at_(reinterpret_cast<const char*>(from)),
        end_(at_ + values * 2),
        to_next_((row - values) * 2),
        bytes_(values * 2),
        rows_(rows),
        step_((rows * values * 2 / parts + kLine) / kLine * kLine) {}
  void ask() {
    for (int64_t left = step_; left > 0 && rows_ > 0; left -= kLine) {
      __builtin_prefetch(at_, 0, 2);
      at_ += kLine;
      if (at_ < end_) continue;
      at_ = end_ + to_next_;
      end_ = at_ + bytes_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t to_next_ = 0, bytes_ = 0, rows_ = 0, step_ = 0;
};

// What the next block of pixels is gathered from, and the weights of the next panel.
struct Later {
  LaterValues pixels, weights;
  void ask() {
    pixels.ask();
    weights.ask();
  }
};

// What the next `count` output pixels read and those before them did not; `from`: the first tap of the first
// of them. Neighbours, or rows of images that do not stay near: rows are counted from that pixel on, so that
// a block which begins in the middle of one asks for as many values, moved by a part of a row.
inline LaterValues later_pixels(const Conv16Call& c, const uint16_t* from, int64_t count, int64_t parts,
                                bool far) {
  if (c.taps == 1 && c.stride_h == 1 && c.stride_w == 1) return {from, count * c.input.pixel, parts};
  if (!far) return {};
  const bool one_row = c.tap[c.taps - 1] < c.input.row;
  const int64_t rows = (count + c.width - 1) / c.width, values = c.width * c.stride_w * c.input.pixel;
  if (one_row) return {from, values, rows, c.stride_h * c.input.row, parts};
  const int64_t last = c.tap[c.taps - 1] / c.input.row - (c.stride_h - 1);
  return {from + last * c.input.row, values, rows * c.stride_h, c.input.row, parts};
}
