#include "cpu/normalise.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/bf16_table.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Rows summed in float32 before they join a float64 sum: few enough to keep the error of plain summation
// small. The parts are the same for any number of threads, so results do not depend on it.
constexpr int64_t kRowsPerPart = 256;
constexpr int64_t kSerialElements = 1 << 14;

// bfloat16 values that are widened at a time, of each tensor: they stay in the first-level cache.
constexpr int64_t kBlockValues = 2048;

int threads_for(int64_t elements) { return elements < kSerialElements ? 1 : team_size(); }

// `width` sums, float64: sum_part(first_row, rows, sums) adds one part's to zeros, in float32.
template <class SumPart>
std::vector<double> sums_by_parts(int64_t rows, int64_t channels, int64_t width, SumPart&& sum_part) {
  const int64_t parts = (rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> partial(static_cast<size_t>(parts * width), 0.0f);
  parallel_team(threads_for(rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kRowsPerPart;
      sum_part(first, std::min(kRowsPerPart, rows - first), partial.data() + part * width);
    }
  });
  std::vector<double> sums(static_cast<size_t>(width), 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < width; ++i) sums[i] += partial[part * width + i];
  return sums;
}

at::Tensor dense(const OptionalTensor& t) { return present(t) ? t->contiguous() : at::Tensor(); }

// Value c of a dense tensor, or `otherwise` where there is none.
double value_or(const at::Tensor& t, int64_t c, double otherwise) {
  return t.defined() ? t.const_data_ptr<float>()[c] : otherwise;
}

at::Tensor channel_tensor(const std::vector<double>& values, const at::TensorOptions& options) {
  const at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, options);
  std::copy(values.begin(), values.end(), t.data_ptr<float>());
  return t;
}

}  // namespace

bool all_float(const at::Tensor& input, std::initializer_list<OptionalTensor> others) {
  bool all = is_plain_float(input);
  for (const auto& t : others) all = all && (!present(t) || t->scalar_type() == at::kFloat);
  return all;
}

namespace {

PixelRows rows_in(const at::Tensor& t, int64_t stride, int64_t rows) {
  if (t.scalar_type() != at::kBFloat16) return {t.const_data_ptr<float>(), stride, rows, t.size(1), t};
  return {nullptr,   stride, rows,
          t.size(1), t,      reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>())};
}

// Rows of channels_last memory that are written: float32, or bfloat16 by way of scratch memory.
struct OutputRows {
  explicit OutputRows(const at::Tensor& t) : channels(t.size(1)) {
    if (t.scalar_type() == at::kBFloat16)
      narrow = reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>());
    else
      data = t.data_ptr<float>();
  }
  OutputRows() = default;
  explicit OutputRows(float* rows) : data(rows) {}

  bool wanted() const { return data || narrow; }
  float* at(int64_t first, float* scratch) const {
    return narrow ? scratch : data ? data + first * channels : nullptr;
  }
  void finish(int64_t first, int64_t count, const float* scratch) const {
    if (narrow)
      bf16_kernels().narrow({scratch, channels}, {narrow + first * channels, channels}, count, channels);
  }

  float* data = nullptr;
  uint16_t* narrow = nullptr;
  int64_t channels = 0;
};

// body(first, count, scratch) for blocks of the rows [begin, end): all at once without bfloat16 among them,
// else with memory for `tensors` blocks.
template <class Body>
void for_blocks(bool narrow, int64_t channels, int64_t tensors, int64_t begin, int64_t end, Body&& body) {
  const int64_t step =
      narrow ? std::max<int64_t>(1, kBlockValues / channels) : std::max<int64_t>(1, end - begin);
  float* scratch = narrow ? thread_scratch(ScratchSlot::kWidened, tensors * step * channels) : nullptr;
  for (int64_t first = begin; first < end; first += step)
    body(first, std::min(step, end - first), scratch, step * channels);
}

}  // namespace

FloatRows float_rows(const PixelRows& x, int64_t first, int64_t count, float* scratch) {
  if (!x.narrow) return {x.data ? x.data + first * x.stride : nullptr, x.stride};
  bf16_kernels().widen({x.narrow + first * x.stride, x.stride}, {scratch, x.channels}, count, x.channels);
  return {scratch, x.channels};
}

PixelRows pixel_rows(const at::Tensor& t) {
  const int64_t channels = t.size(1), height = t.size(2), width = t.size(3);
  const int64_t stride = width > 1       ? t.stride(3)
                         : height > 1    ? t.stride(2)
                         : t.size(0) > 1 ? t.stride(0)
                                         : channels;
  const bool even = channels_adjacent(t) && (height == 1 || t.stride(2) == width * stride) &&
                    (t.size(0) == 1 || t.stride(0) == height * width * stride);
  const int64_t rows = t.size(0) * height * width;
  return even ? rows_in(t, stride, rows)
              : rows_in(t.contiguous(at::MemoryFormat::ChannelsLast), channels, rows);
}

namespace {

void column_sum(const PixelRows& x, int64_t first, int64_t rows, const float* mean, float* sum) {
  if (x.narrow)
    bf16_kernels().norm->column_sum(x.narrow + first * x.stride, x.stride, rows, x.channels, mean, sum);
  else
    kernels().column_sum(x.data + first * x.stride, x.stride, rows, x.channels, mean, sum);
}

}  // namespace

// One pass over memory: every part's own mean, and the squares around it while the part is in cache; then
// the parts are put together (Chan, Golub and LeVeque 1983).
Statistics batch_statistics(const PixelRows& x) {
  const int64_t channels = x.channels, parts = (x.rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> means(static_cast<size_t>(parts * channels), 0.0f), squares(means);
  const auto rows_of = [&](int64_t part) { return std::min(kRowsPerPart, x.rows - part * kRowsPerPart); };
  parallel_team(threads_for(x.rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part) {
      float* mean = means.data() + part * channels;
      column_sum(x, part * kRowsPerPart, rows_of(part), nullptr, mean);
      const float scale = 1.0f / static_cast<float>(rows_of(part));
      for (int64_t c = 0; c < channels; ++c) mean[c] *= scale;
      column_sum(x, part * kRowsPerPart, rows_of(part), mean, squares.data() + part * channels);
    }
  });
  const auto count = static_cast<double>(x.rows);
  std::vector<double> mean(static_cast<size_t>(channels), 0.0), var(mean);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c)
      mean[c] += means[part * channels + c] * static_cast<double>(rows_of(part));
  for (double& m : mean) m /= count;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = means[part * channels + c] - mean[c];
      var[c] += squares[part * channels + c] + static_cast<double>(rows_of(part)) * distance * distance;
    }
  for (double& v : var) v /= count;
  const auto options = x.storage.options().dtype(at::kFloat);
  return {channel_tensor(mean, options), channel_tensor(var, options)};
}

ScaleShift fold(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps) {
  const int64_t channels = mean.numel();
  ScaleShift s{AlignedFloats(channels), AlignedFloats(channels)};
  const at::Tensor m = mean.contiguous(), v = var.contiguous(), w = dense(weight), b = dense(bias);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = value_or(w, c, 1.0) / std::sqrt(v.const_data_ptr<float>()[c] + eps);
    s.scale.data()[c] = static_cast<float>(scale);
    s.shift.data()[c] = static_cast<float>(value_or(b, c, 0.0) - m.const_data_ptr<float>()[c] * scale);
  }
  return s;
}

void normalise_into(const PixelRows& x, const InputPrologue& p, const OptionalTensor& residual,
                    const at::Tensor& output) {
  if (output.numel() == 0) return;
  const PixelRows r = present(residual) ? pixel_rows(*residual) : PixelRows{};
  const OutputRows to(output);
  const bool as_they_are = x.narrow && !r.data && Affine16Call<uint16_t>::serves(p.activation);
  parallel_team(threads_for(output.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(x.rows, 1, thread, team);
    if (as_they_are && !to.narrow && !r.narrow)
      return bf16_kernels().norm->affine_wide(
          {x.narrow + begin * x.stride, nullptr, to.data + begin * x.channels, p.scale, p.shift, x.stride, 0,
           x.channels, x.channels, p.activation},
          end - begin);
    if (as_they_are && to.narrow)
      return bf16_kernels().norm->affine(
          {x.narrow + begin * x.stride, r.narrow ? r.narrow + begin * r.stride : nullptr,
           to.narrow + begin * x.channels, p.scale, p.shift, x.stride, r.stride, x.channels, x.channels,
           p.activation},
          end - begin);
    for_blocks(x.narrow || r.narrow || to.narrow, x.channels, 3, begin, end,
               [&](int64_t first, int64_t count, float* scratch, int64_t block) {
                 const FloatRows from = float_rows(x, first, count, scratch),
                                 more = float_rows(r, first, count, scratch + block);
                 float* rows = to.at(first, scratch + 2 * block);
                 kernels().affine({from.data, more.data, rows, p.scale, p.shift, from.stride, more.stride,
                                   x.channels, x.channels, p.activation},
                                  count);
                 to.finish(first, count, rows);
               });
  });
}

at::Tensor normalise(const PixelRows& x, at::IntArrayRef sizes, const ScaleShift& s,
                     const OptionalTensor& residual, Activation activation, at::ScalarType type) {
  const at::Tensor output =
      output_empty(sizes, x.storage.options().dtype(type), at::MemoryFormat::ChannelsLast);
  normalise_into(x, {s.scale.data(), s.shift.data(), activation}, residual, output);
  return output;
}

View normalised_with_border(const at::Tensor& t, const InputPrologue& p, Border b, at::Tensor& storage) {
  const ImageSize size = image_size(t);
  const int64_t height = size.height + b.top + b.bottom, width = size.width + b.left + b.right;
  storage = output_empty({size.images, height, width, size.channels}, t.options().dtype(at::kFloat));
  View to{storage.data_ptr<float>(), height * width * size.channels, width * size.channels, size.channels};
  to.data += b.top * to.row + b.left * to.pixel;
  const at::Tensor images = channels_adjacent(t) ? t : t.contiguous(at::MemoryFormat::ChannelsLast);
  const bool narrow = images.scalar_type() == at::kBFloat16;
  const View from = narrow ? View{} : view_of(images);
  const View16 from16 = narrow ? view16_of(images) : View16{};
  parallel_team(threads_for(storage.numel()), [&](int thread, int team, Barrier&) {
    const auto [row_begin, row_end] = share(size.images * size.height, 1, thread, team);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      float* const target = to.data + n * to.image + y * to.row;
      if (narrow)
        p.apply(from16.data + n * from16.image + y * from16.row, from16.pixel, target, size.width,
                size.channels);
      else
        p.apply(from.data + n * from.image + y * from.row, from.pixel, target, size.width, size.channels);
    }
    const auto [image_begin, image_end] = share(size.images, 1, thread, team);
    zero_border(to, size, b, image_begin, image_end);
  });
  return to;
}

at::Tensor batch_norm_act_float(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, double eps, std::string_view activation) {
  return normalise(pixel_rows(input), input.sizes(), fold(mean, var, weight, bias, eps), residual,
                   parse_activation("batch_norm_act", activation), input.scalar_type());
}

namespace {

// What the gradient needs per channel: sums over the batch of the gradient before the activation, and of its
// product with the input less its mean.
struct ChannelSums {
  std::vector<double> grad, product;
};

// What the gradient is computed from.
struct BackwardRows {
  PixelRows grad, output, input;
  static constexpr int64_t kTensors = 3;

  bool narrow() const { return grad.narrow || output.narrow || input.narrow; }
  bool all_narrow() const { return grad.narrow && output.narrow && input.narrow; }
  // Rows from the first on, as they are.
  template <class Y>
  NormBackwardRows<uint16_t, Y> narrow_rows(const NormBackwardCall& call, int64_t first) const {
    return {grad.narrow + first * grad.stride,
            output.narrow + first * output.stride,
            input.narrow + first * input.stride,
            nullptr,
            nullptr,
            call.mean,
            call.slope,
            call.tilt,
            call.offset,
            grad.stride,
            output.stride,
            input.stride,
            call.channels,
            call.activation};
  }
  NormBackwardCall block(NormBackwardCall call, int64_t first, int64_t count, float* scratch,
                         int64_t block) const {
    const FloatRows g = float_rows(grad, first, count, scratch),
                    y = float_rows(output, first, count, scratch + block),
                    x = float_rows(input, first, count, scratch + 2 * block);
    call.grad = g.data;
    call.grad_stride = g.stride;
    call.output = y.data;
    call.output_stride = y.stride;
    call.input = x.data;
    call.input_stride = x.stride;
    return call;
  }
};

ChannelSums backward_sums(const NormBackwardCall& call, const BackwardRows& from) {
  const int64_t channels = call.channels;
  const auto both =
      sums_by_parts(from.input.rows, channels, 2 * channels, [&](int64_t begin, int64_t n, float* partial) {
        if (from.all_narrow())
          return bf16_kernels().norm->backward_sums(from.narrow_rows<uint16_t>(call, begin), n, partial,
                                                    partial + channels);
        for_blocks(from.narrow(), channels, BackwardRows::kTensors, begin, begin + n,
                   [&](int64_t first, int64_t count, float* scratch, int64_t block) {
                     kernels().norm_backward_sums(from.block(call, first, count, scratch, block), count,
                                                  partial, partial + channels);
                   });
      });
  return {{both.begin(), both.begin() + channels}, {both.begin() + channels, both.end()}};
}

template <class Y>
void narrow_backward_rows(void (*kernel)(const NormBackwardRows<uint16_t, Y>&, int64_t),
                          const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t end,
                          Y* grad_input, const OutputRows& grad_residual) {
  auto rows = from.narrow_rows<Y>(call, begin);
  rows.grad_input = grad_input;
  if (grad_residual.narrow) rows.grad_residual = grad_residual.narrow + begin * call.channels;
  kernel(rows, end - begin);
}

// Pixels [begin, end): the gradient of pixel `begin` goes to the first row of `grad_input`.
void backward_rows(const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t end,
                   const OutputRows& grad_input, const OutputRows& grad_residual) {
  if (from.all_narrow() && !grad_residual.data)
    return grad_input.data ? narrow_backward_rows(bf16_kernels().norm->backward_wide, call, from, begin, end,
                                                  grad_input.data, grad_residual)
                           : narrow_backward_rows(bf16_kernels().norm->backward, call, from, begin, end,
                                                  grad_input.narrow, grad_residual);
  const bool narrow = from.narrow() || grad_input.narrow || grad_residual.narrow;
  for_blocks(narrow, call.channels, BackwardRows::kTensors + 2, begin, end,
             [&](int64_t first, int64_t count, float* scratch, int64_t block) {
               NormBackwardCall part = from.block(call, first, count, scratch, block);
               part.grad_input = grad_input.at(first - begin, scratch + 3 * block);
               part.grad_residual = grad_residual.at(first, scratch + 4 * block);
               kernels().norm_backward(part, count);
               grad_input.finish(first - begin, count, part.grad_input);
               grad_residual.finish(first, count, part.grad_residual);
             });
}

void backward_values(const NormBackwardCall& call, const BackwardRows& from, const OutputRows& grad_input,
                     const OutputRows& grad_residual) {
  const int64_t channels = call.channels;
  parallel_team(threads_for(from.input.rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(from.input.rows, 1, thread, team);
    OutputRows own = grad_input;
    if (own.data) own.data += begin * channels;
    if (own.narrow) own.narrow += begin * channels;
    backward_rows(call, from, begin, end, own, grad_residual);
  });
}

// Of `size.images` images from `first_image` on.
void backward_values(const NormBackwardCall& call, const BackwardRows& from, ImageSize size,
                     int64_t first_image, const Bordered& grad_input, const Border& border,
                     const OutputRows& grad_residual) {
  const int64_t first_row = first_image * size.height;
  const View& v = grad_input.view;
  const View16& v16 = grad_input.view16;
  parallel_team(threads_for(size.images * size.height * size.width * size.channels), [&](int thread, int team,
                                                                                         Barrier&) {
    const auto [begin, end] = share(size.images * size.height, 1, thread, team);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / size.height, y = row % size.height;
      OutputRows own(v.data ? v.data + image * v.image + y * v.row : nullptr);
      if (v16.data) own.narrow = v16.data + image * v16.image + y * v16.row;
      own.channels = size.channels;
      const int64_t pixel = (first_row + row) * size.width;
      backward_rows(call, from, pixel, pixel + size.width, own, grad_residual);
    }
    const auto [first, last] = share(size.images, 1, thread, team);
    v16.data ? zero_border(v16, size, border, first, last) : zero_border(v, size, border, first, last);
  });
}

// The normalisation's derivatives per channel, in float64.
struct Slopes {
  std::vector<double> inverse_std, slope;  // 1 / sqrt(var + eps), and that times the weight

  // An empty batch has no variance, but gradients: zeros.
  Slopes(const at::Tensor& var, const OptionalTensor& weight, double eps, bool empty)
      : inverse_std(static_cast<size_t>(var.numel())), slope(inverse_std.size()) {
    const at::Tensor v = var.contiguous(), w = dense(weight);
    for (int64_t c = 0; c < var.numel(); ++c) {
      inverse_std[c] = empty ? 0.0 : 1.0 / std::sqrt(v.const_data_ptr<float>()[c] + eps);
      slope[c] = value_or(w, c, 1.0) * inverse_std[c];
    }
  }
  double of_variance(size_t c) const { return -0.5 * slope[c] * inverse_std[c] * inverse_std[c]; }
};

// The gradient's slope, tilt and offset (see NormBackwardCall) where mean and variance follow the input.
struct Coefficients {
  AlignedFloats slope, tilt, offset;

  Coefficients(const Slopes& s, const ChannelSums& sums, int64_t rows, bool through_statistics)
      : slope(static_cast<int64_t>(s.slope.size())), tilt(slope.size()), offset(slope.size()) {
    for (int64_t c = 0; c < slope.size(); ++c) {
      slope.data()[c] = static_cast<float>(s.slope[c]);
      if (!through_statistics) continue;
      offset.data()[c] = static_cast<float>(-s.slope[c] * sums.grad[c] / static_cast<double>(rows));
      tilt.data()[c] =
          static_cast<float>(2.0 * s.of_variance(c) * sums.product[c] / static_cast<double>(rows));
    }
  }
};

}  // namespace

namespace {

// Where the gradient of the input goes: pixels side by side, or some images at a time with borders.
struct InputTarget {
  OutputRows dense;
  NormGradientReader reader;
};

BatchNormGradients norm_backward(const InputTarget& target, const at::Tensor& grad_output,
                                 const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                 const OptionalTensor& weight, const at::Tensor& output, double eps,
                                 std::string_view activation, bool batch_statistics,
                                 std::array<bool, 6> output_mask) {
  const auto [need_input, need_mean, need_var, need_weight, need_bias, need_residual] = output_mask;
  const BackwardRows from{pixel_rows(grad_output), pixel_rows(output), pixel_rows(input)};
  const PixelRows& x = from.input;
  const at::Tensor center = mean.contiguous();
  const at::Tensor grad_residual =
      need_residual ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                    : no_gradient(input);
  const OutputRows of_residual = need_residual && x.rows > 0 ? OutputRows(grad_residual) : OutputRows();
  NormBackwardCall call{};
  call.mean = center.const_data_ptr<float>();
  call.channels = x.channels;
  call.activation = parse_activation("batch_norm2d_backward", activation);
  const bool through_statistics = batch_statistics && need_input;
  ChannelSums sums;
  if (through_statistics || need_mean || need_var || need_weight || need_bias)
    sums = backward_sums(call, from);
  const Slopes slopes(var, weight, eps, x.rows == 0);
  const Coefficients coefficients(slopes, sums, x.rows, through_statistics && x.rows > 0);
  call.slope = coefficients.slope.data();
  call.tilt = through_statistics ? coefficients.tilt.data() : nullptr;
  call.offset = coefficients.offset.data();
  if (x.rows > 0 && target.reader)
    target.reader({[&](int64_t first, const Bordered& to, const Border& border) {
                     backward_values(call, from, image_size(to.tensor), first, to, border, of_residual);
                   },
                   [&, width = input.size(3)](int64_t row, float* to, bool own) {
                     OutputRows target(to);
                     target.channels = call.channels;
                     backward_rows(call, from, row * width, (row + 1) * width, target,
                                   own ? of_residual : OutputRows());
                   }});
  else if (x.rows > 0 && (target.dense.wanted() || need_residual))
    backward_values(call, from, target.dense, of_residual);
  auto per_channel = [&](bool wanted, auto&& value) {
    if (!wanted) return no_gradient(input);
    std::vector<double> values(static_cast<size_t>(x.channels));
    for (size_t c = 0; c < values.size(); ++c) values[c] = value(c);
    return channel_tensor(values, input.options().dtype(at::kFloat));
  };
  return {no_gradient(input),
          per_channel(need_mean, [&](size_t c) { return -slopes.slope[c] * sums.grad[c]; }),
          per_channel(need_var, [&](size_t c) { return slopes.of_variance(c) * sums.product[c]; }),
          per_channel(need_weight, [&](size_t c) { return sums.product[c] * slopes.inverse_std[c]; }),
          per_channel(need_bias, [&](size_t c) { return sums.grad[c]; }),
          grad_residual};
}

}  // namespace

BatchNormGradients batch_norm2d_backward_float(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var,
                                               const OptionalTensor& weight, const at::Tensor& output,
                                               double eps, std::string_view activation, bool batch_statistics,
                                               std::array<bool, 6> output_mask) {
  const at::Tensor grad_input =
      output_mask[0] ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                     : no_gradient(input);
  InputTarget target;
  if (output_mask[0]) target.dense = OutputRows(grad_input);
  auto found = norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                             batch_statistics, output_mask);
  std::get<0>(found) = grad_input;
  return found;
}

BatchNormGradients batch_norm2d_backward_over(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& mean, const at::Tensor& var,
                                              const OptionalTensor& weight, const at::Tensor& output,
                                              double eps, std::string_view activation, bool batch_statistics,
                                              std::array<bool, 6> output_mask) {
  if (!output_mask[0] || !grad_output.is_contiguous(at::MemoryFormat::ChannelsLast))
    return batch_norm2d_backward_float(grad_output, input, mean, var, weight, output, eps, activation,
                                       batch_statistics, output_mask);
  InputTarget target;
  target.dense = OutputRows(grad_output);  // every value is read before its place is written
  auto found = norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                             batch_statistics, output_mask);
  std::get<0>(found) = grad_output;
  return found;
}

BatchNormGradients batch_norm2d_backward_by_images(const NormGradientReader& reader,
                                                   const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& mean, const at::Tensor& var,
                                                   const OptionalTensor& weight, const at::Tensor& output,
                                                   double eps, std::string_view activation,
                                                   std::array<bool, 6> output_mask) {
  InputTarget target;
  target.reader = reader;
  return norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                       /*batch_statistics=*/true, output_mask);
}

}  // namespace cnnfast::cpu
