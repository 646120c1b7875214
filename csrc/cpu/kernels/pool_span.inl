// A pooling's window where the image ends.
#pragma once

namespace {

// Part of a window along one side that lies inside the image.
struct Span {
  int64_t begin, count;  // first position, and number of positions in steps of the dilation
  int64_t with_padding;  // positions that average pooling counts when it counts padding
};

// Average pooling counts padding up to the declared padding, never what ceil_mode adds beyond it (as torch).
inline Span span_of(int64_t start, int64_t kernel, int64_t dilation, int64_t size, int64_t padded_end) {
  const int64_t end = start + (kernel - 1) * dilation + 1;
  Span s;
  s.begin = start >= 0 ? start : start + (-start + dilation - 1) / dilation * dilation;
  const int64_t reach = (end < size ? end : size) - s.begin;
  s.count =
      dilation == 1 ? reach : (reach + dilation - 1) / dilation;  // a division takes as long as a window
  s.with_padding = (end < padded_end ? end : padded_end) - start;
  return s;
}

// Of average pooling.
inline int64_t divisor_of(const PoolCall& c, const Span& y, const Span& x) {
  if (c.divisor_override) return c.divisor_override;
  return c.count_include_pad ? y.with_padding * x.with_padding : y.count * x.count;
}

}  // namespace
