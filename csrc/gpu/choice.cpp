#include "gpu/choice.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <stdexcept>

#include "gpu/warn.h"

namespace cnnfast::gpu {
namespace {

constexpr const char* kHeader = "cnnfast backend times 1";
constexpr const char* kBackends[] = {"aten", "cuda", "triton"};

std::string read_forced() {
  const char* value = std::getenv("CNNFAST_BACKEND");
  const std::string name = value ? value : "";
  if (name.empty() || name == "auto") return "";
  if (std::find(std::begin(kBackends), std::end(kBackends), name) != std::end(kBackends)) return name;
  throw std::invalid_argument("CNNFAST_BACKEND must be one of auto, aten, cuda, triton, not '" + name + "'");
}

bool belongs(const std::string& option, const std::string& backend) {
  return option == backend || option.rfind(backend + "/", 0) == 0;
}

std::vector<size_t> usable(const std::string& op, const std::vector<Option>& options,
                           const std::string& forced) {
  std::vector<size_t> indices;
  std::string reasons;
  for (size_t i = 0; i < options.size(); ++i) {
    if (!forced.empty() && !belongs(options[i].name, forced)) continue;
    if (options[i].unavailable.empty())
      indices.push_back(i);
    else if (reasons.find(options[i].unavailable) == std::string::npos)
      reasons += (reasons.empty() ? "" : "; ") + options[i].unavailable;
  }
  if (!indices.empty()) return indices;
  if (reasons.empty()) reasons = "the operator has no such backend";
  throw std::runtime_error("cnnfast::" + op + ": " +
                           (forced.empty() ? "no backend can" : "CNNFAST_BACKEND=" + forced + " cannot") +
                           " serve this call: " + reasons);
}

// The least of the usable options' times; nothing where one of them was never measured.
std::optional<size_t> fastest(const Times::Row& row, const std::vector<Option>& options,
                              const std::vector<size_t>& among) {
  std::optional<size_t> best;
  double least = 0;
  for (const size_t i : among) {
    const auto found = std::find_if(row.begin(), row.end(),
                                    [&](const auto& entry) { return entry.first == options[i].name; });
    if (found == row.end()) return std::nullopt;
    if (!best || found->second < least) best = i, least = found->second;
  }
  return best;
}

// name=milliseconds; throws std::runtime_error for anything else.
std::pair<std::string, double> parse_entry(const std::string& text) {
  const size_t split = text.rfind('=');
  char* end = nullptr;
  const double time = split == std::string::npos ? -1 : std::strtod(text.c_str() + split + 1, &end);
  if (!(time >= 0) || *end != '\0') throw std::runtime_error("'" + text + "' is no name=milliseconds");
  return {text.substr(0, split), time};
}

std::map<std::string, Times::Row> parse(std::istream& stream) {
  std::string line;
  if (!std::getline(stream, line) || line != kHeader)
    throw std::runtime_error("its first line is not '" + std::string(kHeader) + "'");
  std::map<std::string, Times::Row> rows;
  while (std::getline(stream, line)) {
    std::istringstream fields(line);
    std::string key, field;
    std::getline(fields, key, '\t');
    while (std::getline(fields, field, '\t')) rows[key].push_back(parse_entry(field));
    if (rows[key].empty()) throw std::runtime_error("'" + line + "' has no times");
  }
  return rows;
}

}  // namespace

const std::string& forced_backend() {
  static const std::string forced = read_forced();
  return forced;
}

const std::string& forced_among(const std::vector<Option>& options) {
  static const std::string none;
  const std::string& forced = forced_backend();
  const bool has_it = std::any_of(options.begin(), options.end(),
                                  [&](const Option& option) { return belongs(option.name, forced); });
  return has_it ? forced : none;
}

Times::Times(std::string file) : file_(std::move(file)) {}

Times& Times::of_process() {
  static const char* file = std::getenv("CNNFAST_BACKEND_TIMES");
  static auto& times = *new Times(file ? file : "");  // outlives every thread
  return times;
}

std::optional<Times::Row> Times::find(const std::string& key) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!was_read_) read();
  const auto found = rows_.find(key);
  return found == rows_.end() ? std::nullopt : std::optional<Row>(found->second);
}

void Times::add(const std::string& key, const Row& row) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!was_read_) read();
  auto& known = rows_[key];
  for (const auto& [name, time] : row) {
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&, n = name](const auto& entry) { return entry.first == n; });
    if (found == known.end())
      known.emplace_back(name, time);
    else
      found->second = time;
  }
  if (!file_.empty()) write();
}

std::map<std::string, Times::Row> Times::all() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!was_read_) read();
  return rows_;
}

void Times::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  rows_.clear();
  was_read_ = true;
}

// Adds the file's rows that are not known. A damaged file is left out with a warning, and is replaced when
// there are new times.
void Times::read() {
  was_read_ = true;
  if (file_.empty()) return;
  std::ifstream stream(file_);
  if (!stream) return;  // none yet
  try {
    auto rows = parse(stream);
    rows_.merge(rows);
  } catch (const std::exception& error) {
    warn("the backend times in " + file_ + " are not used: " + error.what());
  }
}

// As a whole, under a name of its own first: of several processes the last one wins, and none sees half a
// file.
void Times::write() {
  const std::string fresh = file_ + "." + std::to_string(getpid());
  {
    std::ofstream stream(fresh);
    stream << kHeader << '\n' << std::setprecision(17);
    for (const auto& [key, row] : rows_) {
      stream << key;
      for (const auto& [name, time] : row) stream << '\t' << name << '=' << time;
      stream << '\n';
    }
    stream.flush();
    if (stream && std::rename(fresh.c_str(), file_.c_str()) == 0) return;
  }
  std::remove(fresh.c_str());
  warn("backend times cannot be written to " + file_ + "; they are kept for this process alone");
  file_.clear();
}

size_t choose(const std::string& op, const std::string& key, const std::vector<Option>& options,
              const std::string& forced, Times& times, const Timer& timer) {
  const std::vector<size_t> among = usable(op, options, forced);
  if (among.size() == 1) return among[0];
  const auto row = times.find(key);
  const auto known = row ? fastest(*row, options, among) : std::nullopt;
  if (known) return *known;
  if (!timer) return among[0];
  Times::Row measured;
  for (const size_t i : among) measured.emplace_back(options[i].name, timer(i));
  times.add(key, measured);
  return *fastest(measured, options, among);
}

}  // namespace cnnfast::gpu
