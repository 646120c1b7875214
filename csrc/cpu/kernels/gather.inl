// Kernels of a convolution out of a weight tensor of any strides, with output channels side by side; and
// back.
#pragma once

namespace {

// Columns of a matrix with a row of adjacent floats per lane, as vectors of lanes: one
// after the other goes to to().
template <class To>
inline void gather_columns(const float* rows, int64_t distance, int64_t lanes, int64_t columns, To&& to) {
  for (int64_t j0 = 0; j0 < columns; j0 += Vec::kWidth) {
    const int64_t count = columns - j0 < Vec::kWidth ? columns - j0 : Vec::kWidth;
    Vec v[Vec::kWidth];
#pragma GCC unroll 16
    for (int64_t r = 0; r < Vec::kWidth; ++r)
      v[r] = r < lanes ? Vec::load_first(rows + r * distance + j0, count) : Vec::zero();
    Vec::transpose(v);
    for (int64_t j = 0; j < count; ++j) v[j].store(to());
  }
}

// One vector of lanes, `lanes` of which exist.
void gather_vector(const KernelGather& c, const float* weight, int64_t lanes, float* to) {
  const int64_t taps = c.height * c.width;
  const auto tap_at = [&](int64_t tap) { return tap / c.width * c.row + tap % c.width * c.column; };
  if (c.out == 1) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* from = weight + tap_at(tap);
      for (int64_t i = 0; i < c.inputs; ++i)
        Vec::load_first(from + i * c.in, lanes).store(to + i * c.step + tap * c.tap_step);
    }
    return;
  }
  if (c.in == 1) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      float* place = to + tap * c.tap_step - c.step;
      gather_columns(weight + tap_at(tap), c.out, lanes, c.inputs, [&] { return place += c.step; });
    }
    return;
  }
  // Distance of two positions that follow each other.
  const int64_t unit = c.width > 1 ? c.column : c.height > 1 ? c.row : 1;
  const bool adjacent =
      (unit == 1 || unit == -1) && (c.width == 1 || c.height == 1 || c.row == unit * c.width);
  if (!adjacent) {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t i = 0; i < c.inputs; ++i)
        for (int64_t lane = 0; lane < Vec::kWidth; ++lane)
          to[i * c.step + tap * c.tap_step + lane] =
              lane < lanes ? weight[tap_at(tap) + i * c.in + lane * c.out] : 0.0f;
    return;
  }
  const bool turned = unit == -1;  // the last position lies first
  const float* first = turned ? weight + tap_at(taps - 1) : weight;
  const int64_t tap_step = turned ? -c.tap_step : c.tap_step;
  for (int64_t i = 0; i < c.inputs; ++i) {
    float* place = to + i * c.step + (turned ? taps : -1) * c.tap_step;
    gather_columns(first + i * c.in, c.out, lanes, taps, [&] { return place += tap_step; });
  }
}

void gather_kernels(const KernelGather& c) {
  for (int64_t lane = 0; lane < c.lanes; lane += Vec::kWidth)
    gather_vector(c, c.weight + lane * c.out, c.lanes - lane < Vec::kWidth ? c.lanes - lane : Vec::kWidth,
                  c.to + lane);
}

// The way back: vectors of lanes, from() after from(), become the columns of that matrix.
template <class From>
inline void scatter_columns(float* rows, int64_t distance, int64_t lanes, int64_t columns, From&& from) {
  for (int64_t j0 = 0; j0 < columns; j0 += Vec::kWidth) {
    const int64_t count = columns - j0 < Vec::kWidth ? columns - j0 : Vec::kWidth;
    Vec v[Vec::kWidth];
#pragma GCC unroll 16
    for (int64_t j = 0; j < Vec::kWidth; ++j) v[j] = j < count ? Vec::load(from()) : Vec::zero();
    Vec::transpose(v);
    for (int64_t r = 0; r < lanes; ++r) v[r].store_first(rows + r * distance + j0, count);
  }
}

void scatter_vector(const KernelScatter& c, const float* from, int64_t lanes, float* weight) {
  const int64_t taps = c.height * c.width;
  const auto tap_at = [&](int64_t tap) { return tap / c.width * c.row + tap % c.width * c.column; };
  if (c.in == 1) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* place = from + tap * c.tap_step - c.step;
      scatter_columns(weight + tap_at(tap), c.out, lanes, c.inputs, [&] { return place += c.step; });
    }
    return;
  }
  if (c.in == taps && (c.width == 1 || c.column == 1) && (c.height == 1 || c.row == c.width)) {
    const float* place = from;
    int64_t tap = 0;
    scatter_columns(weight, c.out, lanes, c.inputs * taps, [&] {
      if (tap == taps) {
        tap = 0;
        place += c.step;
      }
      return place + tap++ * c.tap_step;
    });
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t i = 0; i < c.inputs; ++i)
      for (int64_t lane = 0; lane < lanes; ++lane)
        weight[tap_at(tap) + i * c.in + lane * c.out] = from[i * c.step + tap * c.tap_step + lane];
}

void scatter_kernels(const KernelScatter& c) {
  for (int64_t lane = 0; lane < c.lanes; lane += Vec::kWidth)
    scatter_vector(c, c.from + lane, c.lanes - lane < Vec::kWidth ? c.lanes - lane : Vec::kWidth,
                   c.weight + lane * c.out);
}

}  // namespace
