// Where a large result lies. The first write to each page of fresh memory stops for the system to
// map and clear it, at 4 KiB a page more than half of the time of a result that was never written.
// As NumPy does, results from 4 MiB ask Linux for pages of 2 MiB; here that is 4 MiB a thread,
// since of two threads that meet in one page one waits while the other clears it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pyrevgrad::cpu {

// Where each thread has whole ones of its own.
constexpr std::int64_t kHugeFrom = 4 << 20;

// Whether Linux gives them to who asks, and the user does not forbid it.
inline bool asks_for_huge_pages() {
  static const bool asked = [] {
    const char* variable = std::getenv("PYREVGRAD_HUGE_PAGES");
    const std::string wanted = variable == nullptr ? "" : variable;
    if (wanted == "0") return false;
    if (wanted != "" && wanted != "1") {
      throw std::runtime_error("PYREVGRAD_HUGE_PAGES=" + wanted +
                               ": 0 leaves large results to the system; 1, or leaving it unset, "
                               "asks for huge pages");
    }
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string modes;
    return std::getline(file, modes) && modes.find("[madvise]") != std::string::npos;
  }();
  return asked;
}

// A request about pages that wholly or partly hold the result; a refusal changes nothing.
inline void ask_for_huge_pages([[maybe_unused]] void* start, std::int64_t bytes) {
#ifdef MADV_HUGEPAGE
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(start), inside = first % page;
  madvise(reinterpret_cast<void*>(first - inside), static_cast<std::size_t>(bytes) + inside,
          MADV_HUGEPAGE);
#endif
}

}  // namespace pyrevgrad::cpu
