// local_response_norm: torch.nn.LocalResponseNorm on images.
#pragma once
#include "ops/common.h"

namespace cnnfast {

void check_local_response_norm(const at::Tensor& input, int64_t size);

at::Tensor local_response_norm_composite(const at::Tensor& input, int64_t size, double alpha, double beta,
                                         double k);
at::Tensor local_response_norm_backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                  int64_t size, double alpha, double beta, double k);

}  // namespace cnnfast
