// One thread of a launch, in the steps that host and device share: load, compute, store. Between
// compute and store the threads of a group put their bits together, on the device by a shuffle.
//
// Bytes per element, at least: forward 2·size (+ 1/8 with a mask); backward 2·size with nothing
// kept, 2·size + 1/8 with a mask, 3·size with the output or the input.
#pragma once

#include "bodies.h"

namespace pyrevgrad::cuda {

constexpr int kThreads = 256;

// Elements that a block of threads takes.
template <class Form>
constexpr std::int64_t kTile = std::int64_t{kThreads} * Form::steps * Form::lanes;

struct Arrays {
  const void* input;
  const void* kept;
  void* output;
  std::uint8_t* mask;
  std::int64_t size;
  bool input_aligned, kept_aligned, output_aligned;  // starts at a multiple of 16 bytes
};

// `Form` is what bodies have in common: the stored type, what is read and written, the steps.
template <class Form>
struct Thread {
  using T = typename Form::T;
  static constexpr int lanes = Form::lanes, shares = kShares<T>, steps = Form::steps;

  const Arrays& at;
  std::int64_t first;  // the share of the first step
  bool whole;          // every share of the block is there; the same for all threads
  int wide;            // steps whose share is whole
  Share input[steps], kept[steps];
  unsigned bits[steps];

  PYREVGRAD_HD Thread(const Arrays& arrays, std::int64_t block, int thread)
      : at(arrays),
        first(block * kThreads * steps + thread),
        whole((block + 1) * kTile<Form> <= arrays.size),
        wide(steps) {
    if (!whole) {
      const std::int64_t rest = arrays.size / lanes - first;
      const std::int64_t there = rest < 0 ? 0 : (rest + kThreads - 1) / kThreads;
      if (there < steps) wide = static_cast<int>(there);
    }
  }

  PYREVGRAD_HD std::int64_t share(int step) const {
    return first + static_cast<std::int64_t>(step) * kThreads;
  }
  // Elements of the share that exist.
  PYREVGRAD_HD int count(int step) const {
    const std::int64_t there = at.size - share(step) * lanes;
    return there < 0 ? 0 : there < lanes ? static_cast<int>(there) : lanes;
  }
  PYREVGRAD_HD int place(int step) const { return static_cast<int>(share(step) % shares) * lanes; }

  PYREVGRAD_HD void load() {
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      bits[s] = 0;
      if constexpr (Form::use == MaskUse::kRead) {
        if (whole || count(s) > 0) bits[s] = at.mask[share(s) / shares];
      }
    }
    load(input, static_cast<const T*>(at.input), at.input_aligned);
    if constexpr (Form::reads_kept) load(kept, static_cast<const T*>(at.kept), at.kept_aligned);
  }

  template <class B>
  PYREVGRAD_HD void compute(const B& body) {
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      typename Form::Values v, k;
      widen(input[s], Form::type(), v);
      if constexpr (Form::reads_kept) widen(kept[s], Form::type(), k);
      const unsigned own = bits[s] >> place(s);
      unsigned made;
      if constexpr (Form::reads_kept) {
        made = body(v, k, own);
      } else {
        made = body(v, v, own);
      }
      if constexpr (Form::use == MaskUse::kWrite) {
        made &= (1u << count(s)) - 1;
        bits[s] = made << place(s);
      }
      narrow(v, Form::type(), input[s]);
    }
  }

  PYREVGRAD_HD void store() const {
    T* out = static_cast<T*>(at.output);
    const int last = at.output_aligned ? wide : 0;
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      if (s < last) store_share(input[s], out + share(s) * lanes);
    }
    if (__builtin_expect(last < steps, 0)) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        if (s >= last) store_elements(input[s], out + share(s) * lanes, count(s));
      }
    }
    if constexpr (Form::use == MaskUse::kWrite) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        if (place(s) == 0 && (whole || count(s) > 0)) {
          at.mask[share(s) / shares] = static_cast<std::uint8_t>(bits[s]);
        }
      }
    }
  }

 private:
  PYREVGRAD_HD void load(Share (&into)[steps], const T* from, bool aligned) const {
    const int last = aligned ? wide : 0;
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      if (s < last) into[s] = load_share(from + share(s) * lanes);
    }
    if (__builtin_expect(last < steps, 0)) {
#pragma unroll
      for (int s = 0; s < steps; ++s) {
        if (s >= last) into[s] = load_elements(from + share(s) * lanes, count(s));
      }
    }
  }
};

}  // namespace pyrevgrad::cuda
