"""Triton kernels for GPUs: one file per operator, kernel above, launcher below.

conv2d              `conv2d(input, weight, bias, scale, residual, stride, padding, dilation, groups,
                    activation, out, out_channel_offset, *, pre_scale, pre_shift, pre_activation,
                    allow_tf32, tile)`;
                    `conv2d_statistics(input, weight, ...)` -> (output, mean, var): `conv2d_kernel`
conv2d_input_grad   `conv2d_input_grad(grad_output, weight, input_size, stride, padding, dilation, groups,
                    residual, out, out_channel_offset, *, input, pre_scale, pre_shift, ...)`:
                    `input_grad_kernel`
conv2d_weight_grad  `conv2d_weight_grad(grad_output, input, kernel_size, stride, padding, dilation, groups, *,
                    pre_scale, pre_shift, pre_activation, ...)`: `weight_grad_kernel`, `sum_parts_kernel`
statistics          `combine(parts, part_pixels, pixels)` -> (mean, var): `combine_kernel`

Every file has one function per kernel that says how the kernel is compiled for a type, a class of shapes and
a tile: `conv2d.signature`, `conv2d_input_grad.signature`, `conv2d_weight_grad.signature`,
`conv2d_weight_grad.sum_signature`, `statistics.signature`. Each gives a `signature.Signature`: argument types
in order, constants, which pointers are multiples of 16 bytes, warps, stages. The launchers pass what these
say, and what compiles ahead of time uses them too. One variant serves every size of its class: all sizes,
strides and paddings are arguments at run time (32-bit; element offsets inside are 64-bit), none is
specialised on its value. The grid has one dimension; how many programs a launch has stands in the launcher of
each file (`_launch`).

* A class is: `aligned` (channel counts of a group, pixel strides and addresses are multiples of 16 bytes) or
  not; `across_taps` (a step of the sum spans several taps: few channels) or not; `pointwise` (1x1 without
  padding: no border tests) or not.
* `pre_scale` and `pre_shift` (float32, one per input channel) are applied on load, with or without ReLU, and
  not to padding: batch norm in front of the convolution. The gradients take them too.
* Tensors are read and written by pixel stride, so that inputs, outputs and gradients may be channel slices.
* Sums are float32; two-stage sums go through memory in a fixed order. There are no atomics: equal inputs on
  equal devices give equal bits.

Import the operator's own file (`from cnnfast.triton.conv2d import conv2d`): this package imports nothing by
itself, so that `import cnnfast` never loads Triton.
"""
