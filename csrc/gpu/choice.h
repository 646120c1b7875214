// Which backend serves a call: the one place where that is decided. CNNFAST_BACKEND forces one; otherwise the
// fastest as measured at the first call with a shape, which then stays for the process, and in a file that
// the environment variable CNNFAST_BACKEND_TIMES names for later ones.
//
//   aten    ATen's operators (cuDNN's convolutions)
//   cuda    CUDA kernels of this library
//   triton  Triton kernels, compiled ahead of time; an option's name may say more after a slash
#pragma once
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace cnnfast::gpu {

struct Option {
  std::string name;         // backend, or backend/variant
  std::string unavailable;  // why it cannot serve this call; empty where it can
};

// Milliseconds of option i, called after one call that warms it up.
using Timer = std::function<double(size_t)>;

// What CNNFAST_BACKEND forces, empty for "auto". Throws std::invalid_argument for an unknown name.
const std::string& forced_backend();
// The same for an operator with these options; empty where none of them is of that backend: an operator that
// a backend does not have at all chooses among those that it has.
const std::string& forced_among(const std::vector<Option>& options);

// Measured times by operator, device and shape.
class Times {
 public:
  using Row = std::vector<std::pair<std::string, double>>;

  explicit Times(std::string file);  // empty: not kept
  std::optional<Row> find(const std::string& key);
  void add(const std::string& key, const Row& row);
  std::map<std::string, Row> all();
  void clear();
  static Times& of_process();

 private:
  void read();
  void write();

  std::mutex mutex_;
  std::string file_;
  bool was_read_ = false;
  std::map<std::string, Row> rows_;
};

// Index of the option to run. `forced` is a backend's name or empty; where it serves nothing this throws
// std::runtime_error with the reasons. Options stand in order of preference: the first that serves is taken
// where nothing is known and `timer` is empty (during the capture of a graph, say).
size_t choose(const std::string& op, const std::string& key, const std::vector<Option>& options,
              const std::string& forced, Times& times, const Timer& timer);

}  // namespace cnnfast::gpu
