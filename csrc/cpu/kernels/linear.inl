// Linear layers of a few rows, whose weights are read, and gradients of weights written, once and as they
// lie: the products take about as long as memory does (cpu/streamed_linear.h).
namespace {

// A register block of the product: rows by features. Of the gradients: rows and features, features by
// vectors.
constexpr int kLinearRows = Vec::kWidth == 16 ? 8 : 4, kLinearOutputs = 3;
constexpr int kLinearDepth = Vec::kWidth == 16 ? 8 : 4;
constexpr int kLinearVectors = 2;
// Columns of one pass: 4 KiB of every row of weights at a time, and what goes with them of all rows of images
// stays in the second-level cache.
constexpr int64_t kLinearColumns = 1024;
// Rows of such a part, copied: not at the same places of cache where layers have 4096 features.
constexpr int64_t kLinearStep = kLinearColumns + 16;

int64_t linear_scratch(int64_t rows) { return rows * kLinearStep; }

inline void copy_linear_rows(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t rows,
                             int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    __builtin_memcpy(to + r * to_step, from + r * from_step, sizeof(float) * static_cast<uint64_t>(columns));
}

// Into the second-level cache: in the first one, rows of 4096 features would take each other's places.
inline void ask_for_weights(const float* p) { __builtin_prefetch(p, 0, 2); }

inline Vec load_some(const float* p, int64_t n) {
  return n >= Vec::kWidth ? Vec::load(p) : Vec::load_first(p, n);
}
inline void store_some(Vec v, float* p, int64_t n) { n >= Vec::kWidth ? v.store(p) : v.store_first(p, n); }

// R rows by N outputs over `columns` columns; the weights of the next outputs are asked for meanwhile.
template <int R, int N>
void linear_block(const LinearCall& c, const float* x, const float* weight, int64_t columns, float* y,
                  bool first, bool ahead) {
  Vec acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int o = 0; o < N; ++o) acc[r][o] = Vec::zero();
  for (int64_t i = 0; i < columns; i += Vec::kWidth) {
    Vec w[N];
#pragma GCC unroll 4
    for (int o = 0; o < N; ++o) {
      w[o] = load_some(weight + o * c.in + i, columns - i);
      if (ahead) ask_for_weights(weight + (N + o) * c.in + i);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec value = load_some(x + r * kLinearStep + i, columns - i);
#pragma GCC unroll 4
      for (int o = 0; o < N; ++o) acc[r][o] = Vec::fma(value, w[o], acc[r][o]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int o = 0; o < N; ++o)
      y[r * c.out + o] = (first ? 0.0f : y[r * c.out + o]) + sum_of_lanes(acc[r][o]);
}

template <int N, int R = kLinearRows>
void linear_rows(const LinearCall& c, int64_t rows, const float* x, const float* weight, int64_t columns,
                 float* y, bool first, bool ahead) {
  if constexpr (R > 1) {
    if (rows < R) return linear_rows<N, R - 1>(c, rows, x, weight, columns, y, first, ahead);
  }
  for (; rows >= R; rows -= R, x += R * kLinearStep, y += R * c.out, ahead = false)
    linear_block<R, N>(c, x, weight, columns, y, first, ahead);
  if constexpr (R > 1) {
    if (rows > 0) linear_rows<N, R - 1>(c, rows, x, weight, columns, y, first, false);
  }
}

void linear(const LinearCall& c, int64_t out_begin, int64_t out_end) {
  for (int64_t column = 0; column < c.in; column += kLinearColumns) {
    const int64_t columns = c.in - column < kLinearColumns ? c.in - column : kLinearColumns;
    copy_linear_rows(c.x + column, c.in, c.scratch, kLinearStep, c.rows, columns);
    int64_t o = out_begin;
    for (; o + kLinearOutputs <= out_end; o += kLinearOutputs)
      linear_rows<kLinearOutputs>(c, c.rows, c.scratch, c.weight + o * c.in + column, columns, c.y + o,
                                  column == 0, o + 2 * kLinearOutputs <= out_end);
    for (; o < out_end; ++o)
      linear_rows<1>(c, c.rows, c.scratch, c.weight + o * c.in + column, columns, c.y + o, column == 0,
                     false);
  }
}

// Adds N outputs' part to the gradient of R rows, one vector of columns.
template <int R, int N>
inline void linear_input_block(const LinearGradCall& c, const float* grad, const float* weight, int64_t lanes,
                               float* to, bool first) {
  Vec acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = first ? Vec::zero() : load_some(to + r * kLinearStep, lanes);
#pragma GCC unroll 8
  for (int o = 0; o < N; ++o) {
    const Vec w = load_some(weight + o * c.in, lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = Vec::fma(Vec::set1(grad[o * c.rows + r]), w, acc[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store_some(acc[r], to + r * kLinearStep, lanes);
}

template <int N, int R = kLinearRows>
inline void linear_input_rows(const LinearGradCall& c, int64_t rows, const float* grad, const float* weight,
                              int64_t lanes, float* to, bool first) {
  if constexpr (R > 1) {
    if (rows < R) return linear_input_rows<N, R - 1>(c, rows, grad, weight, lanes, to, first);
  }
  for (; rows >= R; rows -= R, grad += R, to += R * kLinearStep)
    linear_input_block<R, N>(c, grad, weight, lanes, to, first);
  if constexpr (R > 1) {
    if (rows > 0) linear_input_rows<N, R - 1>(c, rows, grad, weight, lanes, to, first);
  }
}

template <int N>
void linear_input_outputs(const LinearGradCall& c, int64_t o, int64_t begin, int64_t end) {
  const bool ahead = o + 2 * N <= c.out;
  for (int64_t i = begin; i < end; i += Vec::kWidth) {
    if (ahead)
      for (int n = 0; n < N; ++n) ask_for_weights(c.weight + (o + N + n) * c.in + i);
    linear_input_rows<N>(c, c.rows, c.grad + o * c.rows, c.weight + o * c.in + i, end - i,
                         c.scratch + i - begin, o == 0);
  }
}

void linear_input_grad(const LinearGradCall& c, int64_t in_begin, int64_t in_end) {
  for (int64_t begin = in_begin; begin < in_end; begin += kLinearColumns) {
    const int64_t end = begin + kLinearColumns < in_end ? begin + kLinearColumns : in_end;
    int64_t o = 0;
    for (; o + kLinearDepth <= c.out; o += kLinearDepth) linear_input_outputs<kLinearDepth>(c, o, begin, end);
    for (; o < c.out; ++o) linear_input_outputs<1>(c, o, begin, end);
    copy_linear_rows(c.scratch, kLinearStep, c.to + begin, c.in, c.rows, end - begin);
  }
}

// N outputs by V vectors of columns, all rows.
template <int N, int V>
inline void linear_weight_block(const LinearGradCall& c, const float* grad, const float* x, int64_t lanes,
                                float* to) {
  Vec acc[N][V];
#pragma GCC unroll 8
  for (int o = 0; o < N; ++o)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[o][v] = Vec::zero();
  for (int64_t r = 0; r < c.rows; ++r) {
    Vec value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) value[v] = load_some(x + r * c.in + v * Vec::kWidth, lanes);
#pragma GCC unroll 8
    for (int o = 0; o < N; ++o) {
      const Vec g = Vec::set1(grad[o * c.rows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[o][v] = Vec::fma(g, value[v], acc[o][v]);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < N; ++o)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store_some(acc[o][v], to + o * c.in + v * Vec::kWidth, lanes);
}

template <int N>
void linear_weight_outputs(const LinearGradCall& c, int64_t o, int64_t begin, int64_t end) {
  constexpr int64_t kStep = kLinearVectors * Vec::kWidth;
  const float* grad = c.grad + o * c.rows;
  float* to = c.to + o * c.in;
  int64_t i = begin;
  for (; i + kStep <= end; i += kStep)
    linear_weight_block<N, kLinearVectors>(c, grad, c.x + i, Vec::kWidth, to + i);
  for (; i < end; i += Vec::kWidth) linear_weight_block<N, 1>(c, grad, c.x + i, end - i, to + i);
}

void linear_weight_grad(const LinearGradCall& c, int64_t out_begin, int64_t out_end) {
  for (int64_t begin = 0; begin < c.in; begin += kLinearColumns) {
    const int64_t end = begin + kLinearColumns < c.in ? begin + kLinearColumns : c.in;
    int64_t o = out_begin;
    for (; o + kLinearDepth <= out_end; o += kLinearDepth)
      linear_weight_outputs<kLinearDepth>(c, o, begin, end);
    for (; o < out_end; ++o) linear_weight_outputs<1>(c, o, begin, end);
  }
}

}  // namespace
