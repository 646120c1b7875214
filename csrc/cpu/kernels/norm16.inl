// Batch norm over rows of bfloat16, read and written without a copy in float32.
#include "cpu/kernels/values16.inl"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "cpu/kernels/batch_norm.inl"
#pragma GCC diagnostic pop
#include "cpu/kernels/bn_act_backward.inl"
#include "cpu/kernels/norm_backward.inl"

namespace {

// Rows [begin, end) of some channels.
template <class Cols, class T>
inline void affine_columns(const Affine16Call<T>& c, int64_t begin, int64_t end, int64_t ahead,
                           int64_t channel, int64_t lanes) {
  const auto scale = Cols::load(c.scale + channel, lanes), shift = Cols::load(c.shift + channel, lanes);
  for (int64_t r = begin; r < end; ++r) {
    fetch(c.input, (r + ahead) * c.input_stride + channel);
    fetch(c.residual, (r + ahead) * c.residual_stride + channel);
    auto x = Cols::load(c.input + r * c.input_stride + channel, lanes);
#pragma GCC unroll 2
    for (int j = 0; j < Cols::kVectors; ++j) x.v[j] = x.v[j] * scale.v[j] + shift.v[j];
    if (c.residual) {
      const auto more = Cols::load(c.residual + r * c.residual_stride + channel, lanes);
#pragma GCC unroll 2
      for (int j = 0; j < Cols::kVectors; ++j) x.v[j] = x.v[j] + more.v[j];
    }
#pragma GCC unroll 2
    for (int j = 0; j < Cols::kVectors; ++j) x.v[j] = apply_short(c.activation, x.v[j]);
    x.store(c.output + r * c.output_stride + channel, lanes);
  }
}

template <class T>
void affine16(const Affine16Call<T>& c, int64_t rows) {
  for_row_blocks(rows, c.channels, [&](int64_t begin, int64_t end, int64_t ahead) {
    for_columns(c.channels, [&](auto columns, int64_t channel, int64_t lanes) {
      affine_columns<decltype(columns)>(c, begin, end, ahead, channel, lanes);
    });
  });
}

constexpr Norm16Kernels kNorm16 = {column_sum<uint16_t>,
                                   column_distances<uint16_t>,
                                   affine16<uint16_t>,
                                   affine16<float>,
                                   norm_backward_sums<uint16_t, uint16_t>,
                                   norm_backward<uint16_t, uint16_t>,
                                   norm_backward<uint16_t, float>,
                                   bn_act_backward<uint16_t, uint16_t>,
                                   bn_act_backward<uint16_t, float>};

}  // namespace
