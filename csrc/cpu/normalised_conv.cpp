#include "cpu/normalised_conv.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace cnnfast::cpu {
namespace {

// Scratch memory of one thread should stay in its second-level cache between writing and reading.
constexpr int64_t kScratchBytes = 256 * 1024;
constexpr double kSerialFlops = 4e5;

// Images in memory with their border around them.
class Scratch {
 public:
  Scratch(ImageSize size, Border border)
      : size_(size),
        border_(border),
        width_(size.width + border.left + border.right),
        image_((size.height + border.top + border.bottom) * width_ * size.channels) {}

  int64_t image_floats() const { return image_; }
  // Views of the first pixel inside the border, and of the first pixel of all.
  View inside(float* memory) const {
    View v = outside(memory);
    v.data += border_.top * v.row + border_.left * v.pixel;
    return v;
  }
  View outside(float* memory) const { return {memory, image_, width_ * size_.channels, size_.channels}; }

 private:
  ImageSize size_;
  Border border_;
  int64_t width_, image_;
};

View from_image(View v, int64_t n) {
  v.data += n * v.image;
  return v;
}

ConvGeometry with_images(ConvGeometry g, int64_t images) {
  g.images = images;
  return g;
}

}  // namespace

void normalise_rows(const InputPrologue& p, View source, ImageSize size, View target, int64_t row_begin,
                    int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / size.height, y = row % size.height;
    kernels().affine({source.data + n * source.image + y * source.row, nullptr,
                      target.data + n * target.image + y * target.row, p.scale, p.shift, source.pixel, 0,
                      target.pixel, size.channels, p.activation},
                     size.width);
  }
}

void normalised_conv(const ConvGeometry& g, View input, ImageSize size, Border border,
                     const InputPrologue& prologue, const PackedConv& packed, View output) {
  const Scratch scratch(size, border);
  const int64_t image_bytes = scratch.image_floats() * static_cast<int64_t>(sizeof(float));
  const int64_t per_part = std::clamp<int64_t>(kScratchBytes / image_bytes, 1, size.images);
  const int64_t parts = (size.images + per_part - 1) / per_part;
  const int threads = g.flops() < kSerialFlops ? 1 : team_size();
  // Few images: all threads work on all of them together. Else each thread takes its own.
  const bool together = parts < threads;
  const int64_t held = together ? size.images : per_part;
  AlignedFloats memory((together ? 1 : threads) * held * scratch.image_floats());
  const ConvGeometry whole_geometry = with_images(g, held),
                     rest_geometry = with_images(g, together ? held : size.images - (parts - 1) * per_part);
  const View reading = scratch.outside(memory.data());
  const ConvJob whole(whole_geometry, reading, output, View{}), rest(rest_geometry, reading, output, View{});
  parallel_team(threads, [&](int thread, int team, Barrier& barrier) {
    float* own = memory.data() + (together ? 0 : thread * held * scratch.image_floats());
    const auto [zero_begin, zero_end] =
        together ? share(held, 1, thread, team) : std::pair<int64_t, int64_t>{0, held};
    zero_border(scratch.inside(own), {held, size.height, size.width, size.channels}, border, zero_begin,
                zero_end);
    if (together) {
      const auto [begin, end] = share(held * size.height, 1, thread, team);
      normalise_rows(prologue, input, size, scratch.inside(own), begin, end);
      barrier.wait();
      whole.run_at(packed, own, output.data, nullptr, thread, team);
      return;
    }
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part) {
      const ConvJob& job = part + 1 == parts ? rest : whole;
      const int64_t first = part * per_part;
      normalise_rows(prologue, from_image(input, first), size, scratch.inside(own), 0,
                     job.geometry().images * size.height);
      job.run_at(packed, own, from_image(output, first).data, nullptr, 0, 1);
    }
  });
}

}  // namespace cnnfast::cpu
