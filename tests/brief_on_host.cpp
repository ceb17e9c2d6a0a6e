// Half types' formulas as the device evaluates them, on every finite number of the type, and
// float32's logarithm.
//
//   brief_on_host FILE
//
// Writes float32 to FILE: by dtype (bfloat16, float16), error (up, down, by turns), activation
// (all, then elu, celu and softplus with a first parameter of 0.3) and function (value, slope),
// 65536 results in the order of the stored patterns. Behind them, by error, log(1 + u) in float32
// for every 1024th number u from 0 to 1. The approximate instructions are modelled by the exact
// function times 1 + the error that PTX's documentation allows, subnormal results as 0; lg2, whose
// error is absolute near 1, plus it.
#define PYREVGRAD_APPROXIMATE

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../csrc/cuda/brief.h"

namespace pyrevgrad {
namespace quick {

int way = 0;
unsigned turn = 0;

double sign() {
  turn = turn * 1664525u + 1013904223u;
  return way == 0 ? 1 : way == 1 ? -1 : (turn >> 16 & 1) ? 1 : -1;
}
float off(double exact, double error) {
  const float made = static_cast<float>(exact * (1 + sign() * error));
  return std::fabs(made) < 1.17549435e-38f ? std::copysign(0.0f, made) : made;
}
float power_of_two(float x) { return off(std::exp2(static_cast<double>(x)), 0x1p-22); }
float reciprocal(float x) { return off(1 / static_cast<double>(x), 0x1p-23); }
float quotient(float a, float b) {
  return static_cast<float>(static_cast<double>(a) / b * (1 + sign() * 0x1p-22));
}
float tangent(float x) {
  const float made = static_cast<float>(std::tanh(static_cast<double>(x)) * (1 + sign() * 0x1p-11));
  return std::fabs(made) > 1 ? std::copysign(1.0f, made) : made;
}
float logarithm(float x) {
  return static_cast<float>(std::log2(static_cast<double>(x)) + sign() * 0x1p-22);
}

}  // namespace quick

namespace cuda {
namespace {

template <class A, class T>
void write(std::FILE* file, double a, double b) {
  if constexpr (kSmooth<A>) {
    std::vector<float> values(65536), slopes(65536);
    const Constants<float> p(a, b);
    for (std::uint32_t word = 0; word < 65536; ++word) {
      float x, above;
      widen_word(word, static_cast<const T*>(nullptr), x, above);
      values[word] = value_of<A, T>(x, p);
      slopes[word] = slope_at<A, T>(x, p);
    }
    std::fwrite(values.data(), sizeof(float), values.size(), file);
    std::fwrite(slopes.data(), sizeof(float), slopes.size(), file);
  }
}

template <class T>
void write_all(std::FILE* file) {
  for (quick::way = 0; quick::way < 3; ++quick::way) {
#define PYREVGRAD_WRITE(A, NAME) write<A, T>(file, 1, std::is_same_v<A, Softplus> ? 20 : 0);
    PYREVGRAD_ACTIVATIONS(PYREVGRAD_WRITE)
#undef PYREVGRAD_WRITE
    write<Elu, T>(file, 0.3f, 0);
    write<Celu, T>(file, 0.3f, 0);
    write<Softplus, T>(file, 0.3f, 20);
  }
}

void write_logarithms(std::FILE* file) {
  std::vector<float> found;
  for (quick::way = 0; quick::way < 3; ++quick::way) {
    for (std::uint32_t bits = 0; bits <= 0x3f800000; bits += 1024) {
      float u;
      std::memcpy(&u, &bits, sizeof u);
      found.push_back(log_one_plus(u));
    }
  }
  std::fwrite(found.data(), sizeof(float), found.size(), file);
}

}  // namespace
}  // namespace cuda
}  // namespace pyrevgrad

int main(int count, char** arguments) {
  std::FILE* file = count == 2 ? std::fopen(arguments[1], "wb") : nullptr;
  if (file == nullptr) return 1;
  pyrevgrad::cuda::write_all<pyrevgrad::Bfloat16>(file);
  pyrevgrad::cuda::write_all<pyrevgrad::Half>(file);
  pyrevgrad::cuda::write_logarithms(file);
  return std::fclose(file);
}
