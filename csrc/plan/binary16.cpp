// Sums of bfloat16 images, and their products with one number per image and channel (squeeze-excite's), read
// and rounded in one pass.
#include <algorithm>

#include "cpu/bf16_table.h"
#include "cpu/parallel.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

// act(x * scale + shift + added): scale and shift are numbers per channel, of every image or the same.
class Binary16 : public Writes16<RowStep> {
 public:
  Binary16(int64_t node, bool multiply, bool per_channel, const Activation& activation,
           std::vector<Place> reads, Place to)
      : Writes16(node, std::move(reads), std::move(to)),
        multiply_(multiply),
        per_channel_(per_channel),
        activation_(activation) {}

  std::string text() const override {
    const char* what = multiply_ ? (reads_.size() == 3 ? "multiply and add " : "multiply ") : "add ";
    return what + size_text(writes_.size) + (per_channel_ ? ", one value per channel" : "");
  }
  // An image's numbers serve all of its rows.
  std::optional<RowWindow> window_of(size_t operand) const override {
    if (per_channel_ && operand == 1) return std::nullopt;
    return RowWindow{1, 0, 1};
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const cpu::View16 in = reads_[0].view16(memory), other = reads_[1].view16(memory),
                      out = writes_.view16(memory);
    const cpu::View16 added = reads_.size() == 3 ? reads_[2].view16(memory)
                              : per_channel_     ? cpu::View16{}
                                                 : other;
    const int64_t height = writes_.size.height, channels = writes_.size.channels;
    float* scale = cpu::thread_scratch(cpu::ScratchSlot::kWidened, 2 * channels);
    float* shift = scale + channels;
    std::fill_n(scale, channels, 1.0f);
    std::fill_n(shift, channels, 0.0f);
    cpu::Affine16Call<uint16_t> call{};
    call.scale = scale;
    call.shift = shift;
    call.input_stride = in.pixel;
    call.output_stride = out.pixel;
    call.residual_stride = added.pixel;
    call.channels = channels;
    call.activation = activation_;
    int64_t image = -1;  // whose numbers were widened
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      if (per_channel_ && n != image)
        cpu::bf16_kernels().widen({other.data + n * other.image, channels},
                                  {multiply_ ? scale : shift, channels}, 1, channels);
      image = n;
      call.input = in.data + n * in.image + y * in.row;
      call.output = out.data + n * out.image + y * out.row;
      if (added.data) call.residual = added.data + n * added.image + y * added.row;
      cpu::bf16_kernels().norm->affine(call, writes_.size.width);
    }
  }

 private:
  bool multiply_, per_channel_;
  Activation activation_;
};

}  // namespace

bool takes_binary16(bool multiply, Repeated repeated, const Activation& activation) {
  if (!cpu::Affine16Call<uint16_t>::serves(activation)) return false;
  return repeated == Repeated::kOverPixels || (!multiply && repeated == Repeated::kNot);
}

std::unique_ptr<Step> binary16_step(int64_t node, bool multiply, Repeated repeated,
                                    const Activation& activation, std::vector<Place> reads, Place to) {
  return std::make_unique<Binary16>(node, multiply, repeated == Repeated::kOverPixels, activation,
                                    std::move(reads), std::move(to));
}

}  // namespace cnnfast::plan
