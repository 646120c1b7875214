// Sums over boxes of pixels, NHWC: rows are added value by value, whatever the number of channels; then
// columns, pixel by pixel, in whole vectors: what runs over into the next pixel is overwritten by it.
#pragma once
#include "cpu/kernels/lanes.inl"
#include "cpu/kernels/values.inl"

namespace {

struct Interval {
  int64_t begin, end;
};

inline int64_t at_most(int64_t x, int64_t bound) { return x < bound ? x : bound; }

// What position i is the sum of; ends do not lie before the beginning.
inline Interval interval_of(const BoxAxis& a, int64_t i) {
  int64_t low = i * a.scale + a.first, high = i * a.scale + a.last;
  if (a.distance > 1) {  // a division takes longer than a window
    low = low > 0 ? (low + a.distance - 1) / a.distance : low;
    high = high < 0 ? -1 : high / a.distance;
  }
  const int64_t begin = at_most(low < 0 ? 0 : low, a.size), end = at_most(high < 0 ? 0 : high + 1, a.size);
  return {begin, end < begin ? begin : end};
}

// Sums over rows and results, with room for the vector behind the last value of each of kBoxRows rows.
constexpr int64_t kBoxRows = 16, kBoxMemory = kBoxValues + kBoxRows * Vec::kWidth;
struct BoxMemory {
  alignas(64) float sums[kBoxMemory];
  alignas(64) float results[kBoxMemory];
  Interval columns[kBoxColumns];
};

template <class T>
inline void add_rows(const T* p, int64_t row, int64_t rows, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; i += Vec::kWidth) {
    Vec sum = load_lanes(p + i, count - i);
    for (int64_t y = 1; y < rows; ++y) sum = sum + load_lanes(p + y * row + i, count - i);
    sum.store(sums + i);
  }
  Vec::zero().store(sums + count);
}

template <int64_t kLanes>
inline void add_columns(const float* p, int64_t columns, int64_t channels, float* result) {
  using L = Lanes<kLanes>;
  for (int64_t c = 0; c < channels; c += kLanes) {
    auto sum = typename L::Floats{};
    for (int64_t x = 0; x < columns; ++x) sum += L::load(p + x * channels + c);
    L::store(sum, result + c);
  }
}

template <class T>
inline void store_means(float* sums, int64_t count, float divisor, T* to) {
  const Vec by = Vec::set1(divisor);
  Vec::zero().store(sums + count);
  for (int64_t i = 0; i < count; i += Vec::kWidth) store_lanes(Vec::load(sums + i) / by, to + i, count - i);
}

// A row of the result: the sum of `rows` rows from `from` on; `copies` rows behind it are equal.
template <class T>
struct BoxRow {
  const T* from;
  T* to;
  int64_t rows, copies;
};

// Rows that are worked on together, step by step: a vector that lies across two others waits for their stores
// where it is loaded soon behind them.
template <class V, class T>
class BoxBatch {
 public:
  explicit BoxBatch(const BoxMeanCall<V>& c) : c_(c), box_(c.box) {
    for (int64_t x = 0; x < box_.x.result; ++x) memory_.columns[x] = interval_of(box_.x, x);
    const int64_t size = box_.x.size < box_.x.result ? box_.x.result : box_.x.size,
                  values = size * box_.channels;
    capacity_ = values > kBoxValues ? 1 : at_most(kBoxValues / values, kBoxRows);
    block_ = values > kBoxValues ? block_columns() : box_.x.result;
    step_ = capacity_ > 1 ? values + Vec::kWidth : kBoxMemory;
  }

  void add(const T* from, T* to, Interval rows, bool as_before) {
    if (as_before && count_ > 0) {
      ++rows_[count_ - 1].copies;
      return;
    }
    if (count_ == capacity_) finish();
    rows_[count_++] = {from, to, rows.end - rows.begin, 0};
  }

  void finish() {
    for (int64_t x = 0; x < box_.x.result; x += block_) run({x, at_most(x + block_, box_.x.result)});
    const auto bytes = static_cast<__SIZE_TYPE__>(box_.x.result * box_.channels) * sizeof(T);
    for (int64_t i = 0; i < count_; ++i)
      for (int64_t copy = 1; copy <= rows_[i].copies; ++copy)
        __builtin_memcpy(rows_[i].to + copy * c_.to.row, rows_[i].to, bytes);
    count_ = 0;
  }

 private:
  // Positions of a block: as many as have room, with what they read.
  int64_t block_columns() const {
    const BoxAxis& x = box_.x;
    const int64_t values = kBoxValues / box_.channels;
    return at_most((values * x.distance - (x.last - x.first) - x.distance) / x.scale, values);
  }

  void run(Interval part) {
    const int64_t channels = box_.channels, first = memory_.columns[part.begin].begin,
                  last = memory_.columns[part.end - 1].end;
    for (int64_t i = 0; i < count_; ++i)
      add_rows(rows_[i].from + first * channels, c_.from.row, rows_[i].rows, (last - first) * channels,
               memory_.sums + i * step_);
    add_all_columns<Vec::kWidth>(part, first);
    for (int64_t i = 0; i < count_; ++i)
      store_means(memory_.results + i * step_, (part.end - part.begin) * channels, box_.divisor,
                  rows_[i].to + part.begin * channels);
  }

  // In the narrowest vectors that hold the channels of a pixel: fewer bytes are written twice.
  template <int64_t kLanes>
  void add_all_columns(Interval part, int64_t first) {
    const int64_t channels = box_.channels;
    if constexpr (kLanes > 4)
      if (channels <= kLanes / 2) return add_all_columns<kLanes / 2>(part, first);
    for (int64_t i = 0; i < count_; ++i)
      for (int64_t x = part.begin; x < part.end; ++x) {
        const Interval columns = memory_.columns[x];
        add_columns<kLanes>(memory_.sums + i * step_ + (columns.begin - first) * channels,
                            columns.end - columns.begin, channels,
                            memory_.results + i * step_ + (x - part.begin) * channels);
      }
  }

  const BoxMeanCall<V>& c_;
  const BoxMean& box_;
  int64_t capacity_, block_, step_, count_ = 0;
  BoxRow<T> rows_[kBoxRows];
  BoxMemory memory_;
};

template <class V, class T>
void box_rows(const BoxMeanCall<V>& c, T* to_data, int64_t row_begin, int64_t row_end) {
  const BoxMean& box = c.box;
  BoxBatch<V, T> batch(c);
  Interval before{-1, -1};
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t image = row / box.y.result, y = row % box.y.result;
    const Interval rows = interval_of(box.y, y);
    T* const to = to_data + image * c.to.image + y * c.to.row;
    if (rows.begin == rows.end)
      __builtin_memset(to, 0, static_cast<__SIZE_TYPE__>(box.x.result * box.channels) * sizeof(T));
    else
      batch.add(c.from.data + image * c.from.image + rows.begin * c.from.row, to, rows,
                y > 0 && rows.begin == before.begin && rows.end == before.end);
    before = rows;
  }
  batch.finish();
}

template <class V>
void box_mean(const BoxMeanCall<V>& c, int64_t row_begin, int64_t row_end) {
  box_rows(c, c.to.data, row_begin, row_end);
}

}  // namespace
