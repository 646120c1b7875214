// One or two vectors of adjacent values in memory, which is float32 or, where values16.inl is included,
// bfloat16.
#pragma once

namespace {

template <class T>
struct Values;

template <>
struct Values<float> {
  static Vec load(const float* p) { return Vec::load(p); }
  static Vec load_first(const float* p, int64_t n) { return Vec::load_first(p, n); }
  static void store(Vec x, float* p) { x.store(p); }
  static void store_first(Vec x, float* p, int64_t n) { x.store_first(p, n); }
  static void store_two(Vec x, Vec y, float* p) {
    x.store(p);
    y.store(p + Vec::kWidth);
  }
};

// The first `lanes` values of a vector at most.
template <class T>
inline Vec load_lanes(const T* p, int64_t lanes) {
  return lanes >= Vec::kWidth ? Values<T>::load(p) : Values<T>::load_first(p, lanes);
}

template <class T>
inline void store_lanes(Vec x, T* p, int64_t lanes) {
  lanes >= Vec::kWidth ? Values<T>::store(x, p) : Values<T>::store_first(x, p, lanes);
}

// Asks for what lies `offset` values from p on, memory or not.
template <class T>
inline void fetch(const T* p, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) +
                                                   static_cast<uintptr_t>(offset) * sizeof(T)));
}

// One vector, of which `lanes` values count, or two whole ones.
template <int NV>
struct Columns {
  static constexpr int kVectors = NV;
  Vec v[NV];

  template <class T>
  static Columns load(const T* p, int64_t lanes) {
    if constexpr (NV == 2)
      return {{Values<T>::load(p), Values<T>::load(p + Vec::kWidth)}};
    else
      return {{load_lanes(p, lanes)}};
  }
  template <class T>
  void store(T* p, int64_t lanes) const {
    if constexpr (NV == 2)
      Values<T>::store_two(v[0], v[1], p);
    else
      store_lanes(v[0], p, lanes);
  }
  static Columns zero() {
    Columns c;
    for (Vec& x : c.v) x = Vec::zero();
    return c;
  }
};

// Rows of so many values at a time, channel by channel, stay in the first-level cache.
constexpr int64_t kBlockValues = 2048;

// body(begin, end, ahead) for blocks of rows; `ahead` rows further lies what the next block will read.
// Hardware does not foresee it where pixels are longer than two vectors.
template <class Body>
inline void for_row_blocks(int64_t rows, int64_t channels, Body&& body) {
  const int64_t block = channels < kBlockValues ? kBlockValues / channels : 1;
  for (int64_t begin = 0; begin < rows; begin += block)
    body(begin, rows - begin < block ? rows : begin + block, block);
}

// body(columns, channel, lanes): `columns` says how many vectors from the channel on are worked on.
template <class Body>
inline void for_columns(int64_t channels, Body&& body) {
  int64_t channel = 0;
  for (; channels - channel >= 2 * Vec::kWidth; channel += 2 * Vec::kWidth)
    body(Columns<2>{}, channel, Vec::kWidth);
  for (; channel < channels; channel += Vec::kWidth)
    body(Columns<1>{}, channel, channels - channel < Vec::kWidth ? channels - channel : Vec::kWidth);
}

}  // namespace
