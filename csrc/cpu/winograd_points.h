// Points of the Winograd (Toom-Cook) algorithms F(m x m, r x r) and F(m, r), n = m + r - 1: 0 where n is
// even, pairs +p and -p, and infinity. The pairs were chosen for the least rounding error
// (docs/performance.md). Seen by kernels and by the code that packs weights; internal linkage, see
// kernels/table.inl.
#pragma once
#include <stdint.h>

namespace {

template <int N>
struct WinogradPoints;

template <>
struct WinogradPoints<4> {
  static constexpr int kPairs = 1;
  static constexpr bool kZero = true;
  static constexpr double kPair[] = {1.0};
};

template <>
struct WinogradPoints<5> {
  static constexpr int kPairs = 2;
  static constexpr bool kZero = false;
  static constexpr double kPair[] = {0.4, 1.2};
};

template <>
struct WinogradPoints<6> {
  static constexpr int kPairs = 2;
  static constexpr bool kZero = true;
  static constexpr double kPair[] = {0.70710678118654752, 1.4142135623730951};
};

template <>
struct WinogradPoints<7> {
  static constexpr int kPairs = 3;
  static constexpr bool kZero = false;
  static constexpr double kPair[] = {0.35, 0.9, 1.8};
};

template <>
struct WinogradPoints<8> {
  static constexpr int kPairs = 3;
  static constexpr bool kZero = true;
  static constexpr double kPair[] = {0.5, 1.0, 2.0};
};

template <>
struct WinogradPoints<9> {
  static constexpr int kPairs = 4;
  static constexpr bool kZero = false;
  static constexpr double kPair[] = {0.25, 0.65, 1.3, 2.25};
};

template <>
struct WinogradPoints<10> {
  static constexpr int kPairs = 4;
  static constexpr bool kZero = true;
  static constexpr double kPair[] = {0.4, 0.8, 1.25, 2.5};
};

}  // namespace
