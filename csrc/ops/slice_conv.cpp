#include "ops/slice_conv.h"

namespace cnnfast {

SliceConvs& slice_convs() {
  static SliceConvs convs{nullptr, nullptr};
  return convs;
}

}  // namespace cnnfast
