// How the kernels write their results, by what was measured on processors of each maker.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "dispatch.h"

namespace pyrevgrad::cpu {

// What the kernels do here.
struct WritingHere {
  // Lines of the output are asked for ahead. Intel: a store waits for its line as a load does, and
  // the machine foresees loads better; relu with its mask came from .69 of a copy's bandwidth to
  // .90 at 2^16 float32, and from .90 to 1.24 at 2^24. On AMD's Zen 4 it only costs, up to a third
  // where the third cache serves.
  bool asks_ahead = true;
  // The bytes from which a result is written past the caches, so that its lines are not read first;
  // 0: never. On Zen 4, and memory that was written before, that takes a kernel .6 of the time from
  // 32 MiB, .7 with a reader that comes next; of less than 16 MiB the reader would have found most
  // in the third cache. Not measured on Intel's.
  std::int64_t streams_from = 0;
};

inline std::int64_t bytes_named(const char* text) {
  char* end = nullptr;
  const long long bytes = std::strtoll(text, &end, 10);
  if (*end == '\0' && bytes >= 0) return bytes;
  throw std::runtime_error(std::string("PYREVGRAD_STREAM_FROM=") + text +
                           ": the bytes from which a result is written past the caches, or 0 for "
                           "never");
}

inline const WritingHere& writing_here() {
  static const WritingHere found = [] {
    WritingHere here;
#if defined(__x86_64__)
    if (__builtin_cpu_is("amd")) here = {false, std::int64_t(32) << 20};
#endif
    const char* variable = std::getenv("PYREVGRAD_STREAM_FROM");
    if (variable != nullptr && *variable != '\0') here.streams_from = bytes_named(variable);
    if (!kernels().streams) here.streams_from = 0;
    return here;
  }();
  return found;
}

// Of a result of `bytes`. What is computed in place lies in the caches.
inline Writing writing_of(const Work& work, std::int64_t bytes) {
  const WritingHere& here = writing_here();
  const bool large = here.streams_from != 0 && bytes >= here.streams_from;
  const bool whole_lines = reinterpret_cast<std::uintptr_t>(work.output) % 64 == 0;
  return {here.asks_ahead, large && whole_lines && work.output != work.input};
}

}  // namespace pyrevgrad::cpu
