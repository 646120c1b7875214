// Every operator's schema. Images are N x C x H x W; outputs are in channels_last memory and alias nothing.
// An activation is a word that parse_activation knows (ops/common.cpp), as "relu" or "leaky_relu(0.2)".
#include <torch/library.h>

TORCH_LIBRARY(cnnfast, m) {
  // act(conv(input, weight) * scale[c] + bias[c] + residual)
  m.def(
      "conv2d(Tensor input, Tensor weight, Tensor? bias=None, Tensor? scale=None, Tensor? residual=None, *, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, str activation=\"none\") -> "
      "Tensor");
  // Gradients of input, weight, bias, scale, residual; an empty tensor where output_mask is false.
  m.def(
      "conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? scale, Tensor output, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, str activation, bool[5] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The gradients of the input and of the weight alone, in the strides of either.
  m.def(
      "conv2d_input_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1) -> Tensor");
  m.def(
      "conv2d_weight_grad(Tensor grad_output, Tensor input, Tensor weight, int[2] stride=1, int[2] "
      "padding=0, "
      "int[2] dilation=1, int groups=1) -> Tensor");

  // Batch statistics: act(batch_norm(conv(input, weight) + bias) + residual). conv_output leaves the bias
  // out, mean has it in, var is the biased variance. Only `output` has a gradient.
  m.def(
      "conv2d_batch_norm(Tensor input, Tensor weight, Tensor? bias=None, Tensor? bn_weight=None, "
      "Tensor? bn_bias=None, Tensor? residual=None, *, int[2] stride=1, int[2] padding=0, int[2] dilation=1, "
      "int groups=1, float eps=1e-05, str activation=\"none\") "
      "-> (Tensor output, Tensor conv_output, Tensor mean, Tensor var)");
  // The same without bias and with ReLU, and one bit per value for its gradient, as batch_norm2d_relu's: what
  // autograd runs on GPUs. Not differentiable by itself.
  m.def(
      "conv2d_batch_norm_relu(Tensor input, Tensor weight, Tensor? bn_weight=None, Tensor? bn_bias=None, "
      "Tensor? residual=None, *, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, "
      "float eps=1e-05) -> (Tensor output, Tensor conv_output, Tensor mean, Tensor var, Tensor positive)");
  // Gradients of input, weight, bias, bn_weight, bn_bias, residual. conv_mean is the mean of conv_output.
  // output: where that does not determine the activation's gradient (silu and others) bn_bias instead, or an
  // empty tensor; what the activation was given is then computed again, and there must have been no residual.
  m.def(
      "conv2d_batch_norm_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bn_weight, "
      "Tensor conv_output, Tensor conv_mean, Tensor var, Tensor output, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, float eps, str activation, bool[6] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // act((input - mean) / sqrt(var + eps) * weight + bias + residual)
  m.def(
      "batch_norm_act(Tensor input, Tensor mean, Tensor var, Tensor? weight=None, Tensor? bias=None, "
      "Tensor? residual=None, *, float eps=1e-05, str activation=\"none\") -> Tensor");
  // The same with the batch's own mean and biased variance. Only `output` has a gradient.
  m.def(
      "batch_norm2d(Tensor input, Tensor? weight=None, Tensor? bias=None, Tensor? residual=None, *, "
      "float eps=1e-05, str activation=\"none\") -> (Tensor output, Tensor mean, Tensor var)");
  // batch_norm2d with ReLU, and one bit per value for its gradient: bit i % 8 of byte i / 8 in the order of
  // images, rows, columns, channels; set where the gradient passes. Autograd runs it on GPUs.
  m.def(
      "batch_norm2d_relu(Tensor input, Tensor? weight=None, Tensor? bias=None, Tensor? residual=None, *, "
      "float eps=1e-05) -> (Tensor output, Tensor mean, Tensor var, Tensor positive)");
  // Gradients of input, weight, bias, residual.
  m.def(
      "batch_norm2d_relu_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, "
      "Tensor positive, float eps, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
  // Of batch_norm_act and batch_norm2d: gradients of input, mean, var, weight, bias, residual.
  // batch_statistics: mean and var follow the input, and have no gradient of their own. output: as for
  // conv2d_batch_norm_backward.
  m.def(
      "batch_norm2d_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, Tensor? weight, "
      "Tensor output, float eps, str activation, bool batch_statistics, bool[6] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // act((input - mean) / sqrt(var + eps) * weight + bias) with every image's own mean and biased variance
  // over the pixels and channels of a group, both of shape (N, groups). Only `output` has a gradient.
  m.def(
      "group_norm2d(Tensor input, int groups, Tensor? weight=None, Tensor? bias=None, *, float eps=1e-05, "
      "str activation=\"none\") -> (Tensor output, Tensor mean, Tensor var)");
  // Gradients of input, weight, bias.
  m.def(
      "group_norm2d_backward(Tensor grad_output, Tensor input, Tensor mean, Tensor var, int groups, "
      "Tensor? weight, Tensor? bias, float eps, str activation, bool[3] output_mask) "
      "-> (Tensor, Tensor, Tensor)");

  // conv(act((input - mean) / sqrt(var + eps) * bn_weight + bn_bias), weight) + bias + residual. Without mean
  // and var the batch's own, which are then returned; else they are constants, and those returned are empty.
  // Only `output` has a gradient.
  m.def(
      "bn_act_conv2d(Tensor input, Tensor weight, Tensor? bias=None, Tensor? bn_weight=None, "
      "Tensor? bn_bias=None, Tensor? mean=None, Tensor? var=None, Tensor? residual=None, *, "
      "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, float eps=1e-05, "
      "str pre_activation=\"relu\") -> (Tensor output, Tensor mean, Tensor var)");
  // Gradients of input, weight, bias, bn_weight, bn_bias, residual.
  m.def(
      "bn_act_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bn_weight, "
      "Tensor? bn_bias, Tensor mean, Tensor var, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "float eps, str pre_activation, bool batch_statistics, bool[6] output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  // input / (k + alpha * mean of input^2 over `size` channels around)^beta
  m.def(
      "local_response_norm(Tensor input, int size, float alpha=0.0001, float beta=0.75, float k=1.0) "
      "-> Tensor");
  m.def(
      "local_response_norm_backward(Tensor grad_output, Tensor input, int size, float alpha, float beta, "
      "float k) -> Tensor");

  // act(input @ weight.T + bias)
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None, *, str activation=\"none\") -> Tensor");
  m.def(
      "linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor output, str activation, "
      "bool[3] output_mask) -> (Tensor, Tensor, Tensor)");

  m.def(
      "max_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, "
      "bool ceil_mode=False) -> Tensor");
  m.def(
      "max_pool2d_backward(Tensor grad_output, Tensor input, int[2] kernel_size, int[2] stride, int[2] "
      "padding, "
      "int[2] dilation, bool ceil_mode) -> Tensor");
  m.def(
      "avg_pool2d(Tensor input, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool "
      "ceil_mode=False, "
      "bool count_include_pad=True, int? divisor_override=None) -> Tensor");
  m.def(
      "avg_pool2d_backward(Tensor grad_output, Tensor input, int[2] kernel_size, int[2] stride, int[2] "
      "padding, "
      "bool ceil_mode, bool count_include_pad, int? divisor_override) -> Tensor");

  // N x C x 1 x 1
  m.def("global_avg_pool2d(Tensor input) -> Tensor");
  m.def("global_avg_pool2d_backward(Tensor grad_output, Tensor input) -> Tensor");
  // Branches of convolutions and poolings over one input, concatenated on channels: [output, outputs of the
  // stages before each branch's last]. `branches` is described at parse_branches in ops/inception.h. Only the
  // first output has a gradient.
  m.def("inception(Tensor input, Tensor[] weights, Tensor?[] biases, int[] branches) -> Tensor[]");
  // Gradients of input, weights, biases, in that order in output_mask too.
  m.def(
      "inception_backward(Tensor grad_output, Tensor input, Tensor[] weights, Tensor[] outputs, "
      "int[] branches, bool[] output_mask) -> (Tensor, Tensor[], Tensor[])");

  // Per layer: batch norm over all channels so far, activation, convolution with stride 1 whose channels come
  // behind them. means and vars (one per layer, as constants) normalise where they are given (then mean and
  // var are empty), else the batch's statistics: mean and biased variance of every output channel. Only
  // `output` has a gradient.
  m.def(
      "dense_block(Tensor input, Tensor[] weights, Tensor?[] biases, Tensor?[] bn_weights, "
      "Tensor?[] bn_biases, Tensor?[] means, Tensor?[] vars, *, float eps=1e-05, str activation=\"relu\") "
      "-> (Tensor output, Tensor mean, Tensor var)");
  // Gradients of input, weights, biases, bn_weights, bn_biases, in that order in output_mask too.
  m.def(
      "dense_block_backward(Tensor grad_output, Tensor output, Tensor[] weights, Tensor?[] bn_weights, "
      "Tensor?[] bn_biases, Tensor?[] means, Tensor?[] vars, Tensor mean, Tensor var, float eps, "
      "str activation, bool[] output_mask) -> (Tensor, Tensor[], Tensor[], Tensor[], Tensor[])");
  // The same; grad_output's memory may be used up.
  m.def(
      "dense_block_backward_(Tensor(a!) grad_output, Tensor output, Tensor[] weights, Tensor?[] bn_weights, "
      "Tensor?[] bn_biases, Tensor?[] means, Tensor?[] vars, Tensor mean, Tensor var, float eps, "
      "str activation, bool[] output_mask) -> (Tensor, Tensor[], Tensor[], Tensor[], Tensor[])");

  // A frozen network: plan (int64 words, see plan/graph.h) and its constants (float32). Meta tensors have no
  // words to read: output shapes then follow from `signature`, which plan_signature derives from the plan.
  m.def("run_plan(Tensor[] inputs, Tensor weights, Tensor plan, int[] signature=[]) -> Tensor[]");
  m.def("plan_signature(Tensor weights, Tensor plan) -> int[]");
  // Also the seconds spent in every node (float64, one per node).
  m.def("profile_plan(Tensor[] inputs, Tensor weights, Tensor plan) -> (Tensor[], Tensor)");
  // The plan in words, for the input sizes given.
  m.def("describe_plan(Tensor[] inputs, Tensor weights, Tensor plan) -> str");
  // Times every algorithm of the plan's convolutions that are to be tuned, for the input sizes given: how
  // many convolutions were timed, and how many had been before.
  m.def("tune_plan(Tensor[] inputs, Tensor weights, Tensor plan) -> (int timed, int known)");
  // The table of measured times that tuned plans look into: a row of int64 per measurement, see
  // plan/tuning.h.
  m.def("conv_times() -> Tensor");
  // Adds measurements; those present stay.
  m.def("add_conv_times(Tensor times) -> ()");
  m.def("clear_conv_times() -> ()");
  // The most that this machine does, by measuring for about `seconds` on all threads of torch: float32
  // operations per second (a multiply-add is two) of the active kernels, and bytes read per second, where
  // each thread reads `bytes_per_thread` bytes of its own again and again, from a cache or memory that cores
  // have in common if `shared`.
  m.def("measure_arithmetic(float seconds) -> float");
  m.def("measure_reading(int bytes_per_thread, float seconds, bool shared) -> float");
  // Seconds that a cache line takes from the core of one thread to that of another, by measuring for about
  // `seconds`; 0 where there is one thread.
  m.def("measure_hand_over(float seconds) -> float");
  // A content hash of a contiguous CPU tensor's bytes.
  m.def("checksum(Tensor data) -> int");
  // The backend that serves a call on a GPU, by name; empty where the options must be timed first, for
  // add_backend_times. unavailable: why an option cannot serve, or "". Times as lines "key, name,
  // milliseconds".
  m.def("choose_backend(str op, str key, str[] names, str[] unavailable, bool may_measure) -> str");
  m.def("add_backend_times(str key, str[] names, float[] milliseconds) -> ()");
  m.def("backend_times() -> str[]");
  // Names of the Triton kernels in this library.
  m.def("triton_kernels() -> str[]");
  // Forgets packed weights and planned networks: for writes that torch's version counters do not see.
  m.def("clear_caches() -> ()");
}
