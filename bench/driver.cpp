// Runs single calls of the CPU kernels for a counter of instructions: no torch, no threads.
//
// Reads a line a call from stdin, "forward|backward dtype elements" and the program's numbers, and
// runs each inside `measured`, which the counter is told to watch. Linked with the objects of
// csrc/cpu, as the library is.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "../csrc/cpu/dispatch.h"
#include "../csrc/cpu/writing.h"

using namespace pyrevgrad;

// torch's vector mathematics, which the float64 kernels of curved activations call: not ours to
// count, so these are never run here.
#define PYREVGRAD_NOT_OURS(function)                                                \
  extern "C" void Sleef_##function##_u10() {                                        \
    std::fprintf(stderr, "the driver counts no kernel that calls " #function "\n"); \
    std::abort();                                                                   \
  }
PYREVGRAD_NOT_OURS(erfd4)
PYREVGRAD_NOT_OURS(expd4)
PYREVGRAD_NOT_OURS(expm1d4)
PYREVGRAD_NOT_OURS(log1pd4)
PYREVGRAD_NOT_OURS(tanhd4)
PYREVGRAD_NOT_OURS(erfd8)
PYREVGRAD_NOT_OURS(expd8)
PYREVGRAD_NOT_OURS(expm1d8)
PYREVGRAD_NOT_OURS(log1pd8)
PYREVGRAD_NOT_OURS(tanhd8)

using Direction = void (*)(const Work&, DType, cpu::ParallelFor);

extern "C" __attribute__((noinline)) void measured(Direction direction, const Work& work,
                                                   DType dtype, cpu::ParallelFor threads) {
  direction(work, dtype, threads);
  // Something after the call, or it would be a jump and the counter would not see the return.
  asm volatile("" ::: "memory");
}

namespace {

void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

void no_threads(std::int64_t, std::int64_t, void (*)(std::int64_t, std::int64_t, void*), void*) {
  fail("a call of this size would be shared between threads; count fewer elements");
}

DType dtype_named(const std::string& name) {
  const char* names[kDTypes] = {"float32", "float64", "bfloat16", "float16"};
  for (int dtype = 0; dtype < kDTypes; ++dtype) {
    if (name == names[dtype]) return static_cast<DType>(dtype);
  }
  fail("no such dtype: " + name);
  return kFloat32;
}

// The same numbers on every machine, either sign, 1/4 to 4 in size.
class Numbers {
 public:
  std::vector<char> of(DType dtype, std::int64_t count) {
    std::vector<char> bytes(count * 8);
    for (std::int64_t i = 0; i < count; ++i) put(dtype, bytes.data(), i);
    return bytes;
  }

 private:
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33);
  }
  void put(DType dtype, char* to, std::int64_t i) {
    const std::uint32_t bits = next(), sign = bits & 1, exponent = bits >> 1 & 3;
    const std::uint32_t mantissa = bits >> 3;
    if (dtype == kFloat64) {
      const std::uint64_t high = std::uint64_t(sign) << 11 | (1021 + exponent);
      const std::uint64_t all = high << 52 | std::uint64_t(mantissa) << 24;
      std::memcpy(to + 8 * i, &all, 8);
    } else if (dtype == kFloat32) {
      const std::uint32_t all = (sign << 8 | (125 + exponent)) << 23 | (mantissa & 0x7fffff);
      std::memcpy(to + 4 * i, &all, 4);
    } else {
      const int fraction = dtype == kBfloat16 ? 7 : 10;
      const std::uint32_t bias = dtype == kBfloat16 ? 125 : 13;
      const std::uint32_t width = 15 - fraction, low = mantissa & ((1u << fraction) - 1);
      const auto all =
          static_cast<std::uint16_t>((sign << width | (bias + exponent)) << fraction | low);
      std::memcpy(to + 2 * i, &all, 2);
    }
  }
  std::uint64_t state_ = 1;
};

void run(const std::string& direction, DType dtype, std::int64_t size, const Program& program) {
  Numbers numbers;
  auto x = numbers.of(dtype, size), g = numbers.of(dtype, size);
  std::vector<char> y(size * 8), gx(size * 8);
  std::vector<std::uint8_t> mask(size / 8 + 1);
  const bool masked = program.keeps == Keeps::kMask;
  Work forward{program, x.data(), nullptr, y.data(), masked ? mask.data() : nullptr, size};
  if (direction == "forward") return measured(cpu::forward, forward, dtype, no_threads);
  if (direction != "backward") fail("neither forward nor backward: " + direction);
  cpu::forward(forward, dtype, no_threads);
  const void* kept = nullptr;
  if (program.keeps == Keeps::kOutput) kept = y.data();
  if (program.keeps == Keeps::kInput) kept = x.data();
  measured(cpu::backward, {program, g.data(), kept, gx.data(), forward.mask, size}, dtype,
           no_threads);
}

}  // namespace

int main() {
  std::printf("%s\n", cpu::kernels().capability);
  cpu::writing_here();  // decided by the first call, which is not to be charged for it
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string direction, dtype;
    std::int64_t size = 0;
    double numbers[kProgramSize];
    words >> direction >> dtype >> size;
    for (double& number : numbers) {
      std::string text;
      words >> text;
      number = std::strtod(text.c_str(), nullptr);  // knows inf, which a stream does not
    }
    if (!words || size < 1) fail("not a call: " + line);
    const Program program = program_of(numbers);
    if (program.activation < 0 || program.activation >= kActivations) fail("no such activation");
    run(direction, dtype_named(dtype), size, program);
  }
}
