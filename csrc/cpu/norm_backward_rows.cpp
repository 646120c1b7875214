#include "cpu/norm_backward_rows.h"

#include "cpu/bf16_table.h"

namespace cnnfast::cpu {
namespace {

// The call on rows from the first on, as they are.
template <class Y>
NormBackwardRows<uint16_t, Y> narrow_call(const NormBackwardCall& call, const BackwardRows& from,
                                          int64_t first) {
  return {from.grad.narrow + first * from.grad.stride,
          from.output.narrow ? from.output.narrow + first * from.output.stride : nullptr,
          from.input.narrow + first * from.input.stride,
          nullptr,
          nullptr,
          call.mean,
          call.slope,
          call.tilt,
          call.offset,
          from.grad.stride,
          from.output.stride,
          from.input.stride,
          call.channels,
          call.activation,
          call.scale,
          call.again_shift};
}

NormBackwardCall widened_call(NormBackwardCall call, const BackwardRows& from, int64_t first, int64_t count,
                              float* scratch, int64_t block) {
  const FloatRows g = float_rows(from.grad, first, count, scratch),
                  y = float_rows(from.output, first, count, scratch + block),
                  x = float_rows(from.input, first, count, scratch + 2 * block);
  call.grad = g.data;
  call.grad_stride = g.stride;
  call.output = y.data;
  call.output_stride = y.stride;
  call.input = x.data;
  call.input_stride = x.stride;
  return call;
}

template <class Y>
void narrow_backward_rows(void (*kernel)(const NormBackwardRows<uint16_t, Y>&, int64_t),
                          const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t end,
                          Y* grad_input, const OutputRows& grad_residual) {
  auto rows = narrow_call<Y>(call, from, begin);
  rows.grad_input = grad_input;
  if (grad_residual.narrow) rows.grad_residual = grad_residual.narrow + begin * call.channels;
  kernel(rows, end - begin);
}

}  // namespace

void add_backward_sums(const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t count,
                       float* sums, float* products) {
  if (from.all_narrow())
    return bf16_kernels().norm->backward_sums(narrow_call<uint16_t>(call, from, begin), count, sums,
                                              products);
  for_blocks(from.narrow(), call.channels, BackwardRows::kTensors, begin, begin + count,
             [&](int64_t first, int64_t rows, float* scratch, int64_t block) {
               kernels().norm_backward_sums(widened_call(call, from, first, rows, scratch, block), rows, sums,
                                            products);
             });
}

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
               NormBackwardCall part = widened_call(call, from, first, count, scratch, block);
               part.grad_input = grad_input.at(first - begin, scratch + 3 * block);
               part.grad_residual = grad_residual.at(first, scratch + 4 * block);
               kernels().norm_backward(part, count);
               grad_input.finish(first - begin, count, part.grad_input);
               grad_residual.finish(first, count, part.grad_residual);
             });
}

}  // namespace cnnfast::cpu
