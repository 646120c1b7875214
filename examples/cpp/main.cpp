// Classifies the Fashion-MNIST test images with a network that Python exported, without Python.
//
//   classify NETWORK t10k-images-idx3-ubyte t10k-labels-idx1-ubyte [classes.bin [batch]]
//
// NETWORK is a TorchScript file, or an AOTInductor package if its name ends with .pt2.
// The two data files are decompressed IDX files (`python -m cnnfast data --plain FOLDER` writes them).
// classes.bin gets one byte per image: the predicted class.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/script.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kPasses = 3;  // over all images; the fastest counts

using Network = std::function<at::Tensor(const at::Tensor&)>;

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

Network load(const std::string& path) {
  if (!std::ifstream(path)) throw std::runtime_error("cannot open " + path);
  if (ends_with(path, ".pt2")) {
    auto package = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [package](const at::Tensor& input) { return package->run({input}).at(0); };
  }
  auto module = std::make_shared<torch::jit::Module>(torch::jit::load(path));
  module->eval();
  return [module](const at::Tensor& input) { return module->forward({input}).toTensor(); };
}

// An array of unsigned bytes from an IDX file: two zero bytes, 8, the rank, big-endian sizes, values.
at::Tensor read_idx(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot open " + path);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto byte = [&](size_t i) { return static_cast<uint64_t>(static_cast<unsigned char>(bytes[i])); };
  if (bytes.size() < 4 || byte(0) != 0 || byte(1) != 0 || byte(2) != 8 || byte(3) < 1 || byte(3) > 4)
    throw std::runtime_error(path + " is not an IDX file of unsigned bytes (is it still compressed?)");
  const size_t rank = byte(3), start = 4 + 4 * rank;
  if (bytes.size() < start) throw std::runtime_error(path + " is cut off in its header");
  std::vector<int64_t> sizes;
  uint64_t count = 1;
  for (size_t i = 4; i < start; i += 4) {
    sizes.push_back(static_cast<int64_t>(byte(i) << 24 | byte(i + 1) << 16 | byte(i + 2) << 8 | byte(i + 3)));
    if (__builtin_mul_overflow(count, static_cast<uint64_t>(sizes.back()), &count))
      throw std::runtime_error(path + " has absurd sizes in its header");
  }
  if (count != bytes.size() - start)
    throw std::runtime_error(path + " does not have the length that its header asks for");
  auto array = at::empty(sizes, at::kByte);
  std::copy(bytes.begin() + static_cast<std::ptrdiff_t>(start), bytes.end(), array.data_ptr<uint8_t>());
  return array;
}

// The class of each image (N×H×W bytes), as bytes.
at::Tensor classify(const Network& network, const at::Tensor& images, int64_t batch) {
  std::vector<at::Tensor> classes;
  for (const at::Tensor& part : images.split(batch)) {
    const at::Tensor input = part.unsqueeze(1).to(at::kFloat).div_(255);
    classes.push_back(network(input).argmax(1).to(at::kByte));
  }
  return at::cat(classes);
}

void write_bytes(const std::string& path, const at::Tensor& bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(bytes.data_ptr<uint8_t>()), bytes.numel());
  stream.close();
  if (!stream) throw std::runtime_error("cannot write " + path);
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() < 3 || arguments.size() > 5) {
    std::fprintf(stderr, "usage: classify NETWORK images.idx labels.idx [classes.bin [batch]]\n");
    return 2;
  }
  const int64_t batch = arguments.size() > 4 ? std::stoll(arguments[4]) : 256;
  if (batch < 1) throw std::runtime_error("the batch must hold at least 1 image");
  const Network network = load(arguments[0]);
  const c10::InferenceMode no_gradients;
  const at::Tensor images = read_idx(arguments[1]), labels = read_idx(arguments[2]);
  if (images.dim() != 3 || labels.dim() != 1 || images.size(0) != labels.size(0) || images.size(0) == 0)
    throw std::runtime_error("images must be N x H x W, labels N, with the same N above 0");

  classify(network, images.slice(0, 0, batch), batch);  // packs the weights for this processor
  at::Tensor classes;
  double fastest = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    classes = classify(network, images, batch);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, seconds.count());
  }

  const auto right = classes.eq(labels).sum().item<int64_t>();
  const auto count = static_cast<double>(images.size(0));
  std::printf("accuracy %.4f, %.0f images/s\n", static_cast<double>(right) / count, count / fastest);
  if (arguments.size() > 3) write_bytes(arguments[3], classes);
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run({values + 1, values + count});
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 1;
  }
}
