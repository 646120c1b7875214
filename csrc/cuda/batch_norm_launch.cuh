// The kernels of batch_norm.cuh in their order, with their grids and the memory between them. A Launcher is
// called as launch(kernel, grid, arguments): cuda/launcher.cuh for the device, tests/cuda/host for the host.
#pragma once
#include "cuda/batch_norm.cuh"

namespace cnnfast::cuda {

inline dim3 row_grid(const Layout& l) {
  return dim3(static_cast<unsigned>(l.row_blocks), static_cast<unsigned>(l.tiles), 1);
}

inline dim3 merge_grid(const Layout& l) {
  return dim3(static_cast<unsigned>((l.channels + kMergeChannels - 1) / kMergeChannels), 1, 1);
}

// `mean` and `var` (biased) of every channel. The workspace is aligned to 16 bytes.
template <typename T, typename Launcher>
void run_statistics(Launcher& launch, const T* input, int64_t pixel, const Layout& l, float* workspace,
                    float* mean, float* var) {
  float *partial_mean = workspace, *m2 = partial_mean + partial_floats(l), *shift = m2 + partial_floats(l);
  const StatisticsArgs<T> args{{input, pixel}, l, partial_mean, m2, shift};
  if (takes_vectors(input, pixel, l))
    launch(batch_norm_statistics<T, true>, row_grid(l), args);
  else
    launch(batch_norm_statistics<T, false>, row_grid(l), args);
  launch(batch_norm_merge_statistics, merge_grid(l),
         MergeStatisticsArgs{partial_mean, m2, shift, l, mean, var});
}

template <typename T, typename... Images>
bool all_take_vectors(const Layout& l, const Images&... images) {
  return (takes_vectors<T>(address_of(images.data), images.pixel, l) && ...);
}

template <typename T, typename Launcher>
void run_forward(Launcher& launch, const ForwardArgs<T>& args) {
  if (all_take_vectors<T>(args.layout, args.input, args.residual, args.output))
    launch(batch_norm_forward<T, true>, row_grid(args.layout), args);
  else
    launch(batch_norm_forward<T, false>, row_grid(args.layout), args);
}

template <Source kSource, typename T, typename Launcher>
void run_reduce(Launcher& launch, const ReduceArgs<T>& args) {
  if (all_take_vectors<T>(args.layout, args.grad, args.input, args.result, args.grad_behind, args.accumulate))
    launch(batch_norm_reduce<T, true, kSource>, row_grid(args.layout), args);
  else
    launch(batch_norm_reduce<T, false, kSource>, row_grid(args.layout), args);
}

template <Source kSource, typename T, typename Launcher>
void run_apply(Launcher& launch, const ApplyArgs<T>& args) {
  if (all_take_vectors<T>(args.layout, args.grad, args.input, args.result, args.output))
    launch(batch_norm_apply<T, true, kSource>, row_grid(args.layout), args);
  else
    launch(batch_norm_apply<T, false, kSource>, row_grid(args.layout), args);
}

template <Source kSource, typename T, typename Launcher>
void run_backward_of(Launcher& launch, const BackwardCall<T>& call) {
  const Layout& l = call.layout;
  float *sum = call.workspace, *product = sum + partial_floats(l), *scale = product + partial_floats(l);
  float *factor = scale + l.channels, *constant = factor + l.channels;
  run_reduce<kSource, T>(launch, ReduceArgs<T>{call.grad,
                                               call.input,
                                               call.result,
                                               call.mask,
                                               call.grad_residual,
                                               {},
                                               call.mean,
                                               {},
                                               {},
                                               {},
                                               call.eps,
                                               call.activation,
                                               l,
                                               sum,
                                               product});
  launch(batch_norm_merge_gradients, merge_grid(l),
         MergeGradientsArgs{sum, product, l, call.var, call.weight, call.eps, call.batch_statistics,
                            call.grad_weight, call.grad_bias, call.grad_mean, call.grad_var, scale,
                            call.batch_statistics ? Global<float>(factor) : Global<float>(nullptr), constant,
                            false});
  if (!call.grad_input) return;
  ApplyArgs<T> apply{call.grad, call.input, call.result,     call.mask, call.grad_input, call.mean, scale,
                     {},        {},         call.activation, l};
  if (call.batch_statistics) {
    apply.factor = factor;
    apply.constant = constant;
  }
  if (!call.grad_residual) return run_apply<kSource, T>(launch, apply);
  // The first pass has left what is behind the activation: no bits or results to read again.
  apply.grad = {call.grad_residual.data, call.grad_residual.pixel};
  apply.result = {};
  run_apply<Source::kNone, T>(launch, apply);
}

template <typename T, typename Launcher>
void run_backward(Launcher& launch, const BackwardCall<T>& call) {
  if (call.source == Source::kNone) return run_backward_of<Source::kNone, T>(launch, call);
  if (call.source == Source::kMask) return run_backward_of<Source::kMask, T>(launch, call);
  run_backward_of<Source::kResult, T>(launch, call);
}

// A layer of a dense block: `grad` is that of the layer's activated input, which is not kept. Adds
// scale * (gradient behind the activation) to `accumulate`, and what the batch's statistics add to factor and
// constant, whose sum over all layers run_terms adds in one pass.
template <typename T, typename Launcher>
void run_accumulate(Launcher& launch, ReduceArgs<T> reduce, bool batch_statistics, float* workspace,
                    Global<float> grad_weight, Global<float> grad_bias, Global<float> factor,
                    Global<float> constant) {
  const Layout& l = reduce.layout;
  float *sum = workspace, *product = sum + partial_floats(l);
  reduce.sum = sum;
  reduce.product = product;
  run_reduce<Source::kInput, T>(launch, reduce);
  launch(batch_norm_merge_gradients, merge_grid(l),
         MergeGradientsArgs{sum,
                            product,
                            l,
                            reduce.var,
                            reduce.weight,
                            reduce.eps,
                            batch_statistics,
                            grad_weight,
                            grad_bias,
                            {},
                            {},
                            {},
                            factor,
                            constant,
                            true});
}

// grad += factor * (x - mean) + constant, in place.
template <typename T, typename Launcher>
void run_terms(Launcher& launch, Image<T> grad, Image<const T> input, const Layout& l,
               Global<const float> mean, Global<const float> factor, Global<const float> constant) {
  run_apply<Source::kNone, T>(
      launch, ApplyArgs<T>{{grad.data, grad.pixel}, input, {}, {}, grad, mean, {}, factor, constant, {}, l});
}

}  // namespace cnnfast::cuda
