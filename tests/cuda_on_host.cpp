// The CUDA launches run on the host, thread by thread, and held against the CPU kernels.
//
//   cuda_on_host PROGRAMS FOLDER EFFORT
//
// PROGRAMS holds rows of 15 float64: the program of csrc/rule.h and whether it is for half types.
// FOLDER holds x.N and g.N, the stored numbers of dtype N of csrc/cpu/storage.h. EFFORT is 0 for
// some misalignments, 1 for all. Prints a line for each dtype, or what is wrong. Built under
// AddressSanitizer by tests/test_cuda_on_host.py.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../csrc/cpu/dispatch.h"
#include "../csrc/cuda/thread.h"

namespace pyrevgrad::cuda {

// Every thread of a block loads before the first stores, as if they ran abreast. One function for
// all bodies of a form, since these are four hundred.
template <class Form>
void launch_form(void (*compute)(Thread<Form>&, const void*), const void* body, const Arrays& at) {
  alignas(Thread<Form>) static unsigned char room[sizeof(Thread<Form>) * kThreads];
  auto* threads = reinterpret_cast<Thread<Form>*>(room);
  constexpr int shares = kShares<typename Form::T>;
  for (std::int64_t block = 0; block * kTile<Form> < at.size; ++block) {
    for (int t = 0; t < kThreads; ++t) (new (threads + t) Thread<Form>(at, block, t))->load();
    for (int t = 0; t < kThreads; ++t) compute(threads[t], body);
    // What the shuffle does: the threads of a group hold the bits of all.
    for (int t = 0; t < kThreads && Form::use == MaskUse::kWrite; t += shares) {
      for (int s = 0; s < Form::steps; ++s) {
        unsigned together = 0;
        for (int i = 0; i < shares; ++i) together |= threads[t + i].bits[s];
        for (int i = 0; i < shares; ++i) threads[t + i].bits[s] = together;
      }
    }
    for (int t = 0; t < kThreads; ++t) threads[t].store();
  }
}

template <class B>
void compute(Thread<typename B::Base>& thread, const void* body) {
  B own = *static_cast<const B*>(body);
  own.begin();
  thread.compute(own);
}

template <class B>
void launch(const B& body, const Arrays& at, void*) {
  launch_form<typename B::Base>(compute<B>, &body, at);
}

}  // namespace pyrevgrad::cuda

#include "../csrc/cuda/table.h"

namespace {

using namespace pyrevgrad;
using Bytes = std::vector<unsigned char>;

constexpr int kRow = kProgramSize + 1;
constexpr std::int64_t kEdge = 64;
constexpr unsigned char kSentinel = 42;

void serial(std::int64_t blocks, std::int64_t, void (*run)(std::int64_t, std::int64_t, void*),
            void* context) {
  run(0, blocks, context);
}

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

Bytes contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// `size` bytes that start `offset` bytes behind a multiple of 16 and end with the allocation, so
// that a memory checker sees the first byte too far; bytes before them are watched by a sentinel.
class Array {
 public:
  Array(std::int64_t size, std::int64_t offset)
      : size_(size), before_(kEdge + offset), all_(allocate(before_ + size)) {
    std::memset(all_.get(), kSentinel, before_ + size_);
  }
  Array(const unsigned char* from, std::int64_t size, std::int64_t offset) : Array(size, offset) {
    if (size) std::memcpy(data(), from, size);
  }
  unsigned char* data() { return all_.get() + before_; }
  bool intact() const {
    for (std::int64_t i = 0; i < before_; ++i) {
      if (all_.get()[i] != kSentinel) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };
  static unsigned char* allocate(std::int64_t size) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, size)) fail("out of memory");
    return static_cast<unsigned char*>(p);
  }
  std::int64_t size_, before_;
  std::unique_ptr<unsigned char, Free> all_;
};

struct Placement {
  std::int64_t size;
  int input, kept, output;  // offsets in elements
  bool in_place;
};

// Equal bit for bit, any NaN equal to any other.
template <class Whole>
bool same(const unsigned char* a, const unsigned char* b, Whole infinity) {
  Whole x, y;
  std::memcpy(&x, a, sizeof(Whole));
  std::memcpy(&y, b, sizeof(Whole));
  constexpr Whole magnitude = static_cast<Whole>(~Whole(0)) >> 1;
  return x == y || ((x & magnitude) > infinity && (y & magnitude) > infinity);
}

bool same(DType dtype, const unsigned char* a, const unsigned char* b) {
  switch (dtype) {
    case kFloat32:
      return same<std::uint32_t>(a, b, 0x7f800000u);
    case kFloat64:
      return same<std::uint64_t>(a, b, 0x7ff0000000000000u);
    case kBfloat16:
      return same<std::uint16_t>(a, b, 0x7f80);
    default:
      return same<std::uint16_t>(a, b, 0x7c00);
  }
}

std::int64_t item_size(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

void simulate(const Work& work, DType dtype, bool is_forward, const void* scale = nullptr,
              DType scale_dtype = kFloat32) {
  const cuda::Call call{work, scale, scale_dtype, nullptr};
  using Run = void (*)(const cuda::Call&);
  static constexpr Run runs[2][kDTypes] = {
      {cuda::backward<float>, cuda::backward<double>, cuda::backward<Bfloat16>,
       cuda::backward<Half>},
      {cuda::forward<float>, cuda::forward<double>, cuda::forward<Bfloat16>, cuda::forward<Half>}};
  if (work.size) runs[is_forward][dtype](call);
}

struct Case {
  DType dtype;
  Program program;
  int row;
};

struct Reference {
  Bytes y, mask, gx;
};

class Matrix {
 public:
  Matrix(DType dtype, const std::string& folder)
      : dtype_(dtype),
        item_(item_size(dtype)),
        x_(contents(folder + "/x." + std::to_string(dtype))),
        g_(contents(folder + "/g." + std::to_string(dtype))),
        length_(static_cast<std::int64_t>(x_.size()) / item_) {}

  std::int64_t length() const { return length_; }

  Reference expected(const Program& program, const Program& scaled) {
    Reference made;
    made.y.resize(x_.size());
    made.gx.resize(x_.size());
    Work work{program, x_.data(), nullptr, made.y.data(), nullptr, length_};
    if (program.keeps == Keeps::kMask) {
      made.mask.resize((length_ + 7) / 8);
      work.mask = made.mask.data();
    }
    cpu::forward(work, dtype_, serial);
    work = {scaled, g_.data(), nullptr, made.gx.data(), nullptr, length_};
    if (program.keeps == Keeps::kMask) work.mask = made.mask.data();
    if (program.keeps == Keeps::kOutput) work.kept = made.y.data();
    if (program.keeps == Keeps::kInput) work.kept = x_.data();
    cpu::backward(work, dtype_, serial);
    return made;
  }

  void forward(const Case& c, const Reference& wanted, const Placement& at) {
    const std::int64_t bytes = at.size * item_;
    Array x(x_.data(), bytes, at.input * item_), y(bytes, at.output * item_);
    const bool writes = c.program.keeps == Keeps::kMask;
    Array mask(writes ? (at.size + 7) / 8 : 0, 0);
    unsigned char* out = at.in_place ? x.data() : y.data();
    simulate({c.program, x.data(), nullptr, out, writes ? mask.data() : nullptr, at.size}, dtype_,
             true);
    compare(c, "y", out, wanted.y, at);
    if (writes) {
      Bytes bits(wanted.mask.begin(), wanted.mask.begin() + (at.size + 7) / 8);
      if (at.size % 8) bits.back() &= (1u << at.size % 8) - 1;
      if (!std::equal(bits.begin(), bits.end(), mask.data())) report(c, "the mask differs", at, 0);
    }
    if (!x.intact() || !y.intact() || !mask.intact()) report(c, "wrote before an array", at, 0);
  }

  void backward(const Case& c, const Reference& wanted, const Placement& at,
                const void* scale = nullptr, DType scale_dtype = kFloat32) {
    const std::int64_t bytes = at.size * item_;
    Array g(g_.data(), bytes, at.input * item_), gx(bytes, at.output * item_);
    const bool by_mask = c.program.keeps == Keeps::kMask;
    const bool by_output = c.program.keeps == Keeps::kOutput;
    const bool by_kept = by_output || c.program.keeps == Keeps::kInput;
    Array kept(by_output ? wanted.y.data() : x_.data(), by_kept ? bytes : 0, at.kept * item_);
    Array mask(wanted.mask.data(), by_mask ? (at.size + 7) / 8 : 0, 0);
    unsigned char* out = at.in_place ? g.data() : gx.data();
    simulate({c.program, g.data(), by_kept ? kept.data() : nullptr, out,
              by_mask ? mask.data() : nullptr, at.size},
             dtype_, false, scale, scale_dtype);
    compare(c, "gx", out, wanted.gx, at);
    if (!g.intact() || !gx.intact() || !kept.intact()) report(c, "wrote before an array", at, 0);
  }

  // Whole tiles off by a little in one array: each dtype by less than 16 bytes. Stores take 16 bytes
  // wherever the output is aligned, whatever is read.
  void whole_tiles(const Case& c, const Reference& wanted) {
    const auto stores = [&](const Placement& at) {
      cuda::wide_stores = 0;
      forward(c, wanted, at);
      backward(c, wanted, at);
      return cuda::wide_stores;
    };
    const std::int64_t all = stores({length_, 0, 0, 0, false});
    for (const Placement& at :
         {Placement{length_, 1, 0, 0, false}, Placement{length_, 0, 1, 0, false},
          Placement{length_, 1, 1, 0, false}, Placement{length_, 0, 0, 1, false}}) {
      if (stores(at) != (at.output ? 0 : all)) report(c, "the width of the stores", at, 0);
    }
    if (all < 2 * (length_ - length_ % 4096) * item_ / 16) {
      report(c, "the number of wide stores", {length_, 0, 0, 0, false}, 0);
    }
  }

  std::int64_t elements = 0, launches = 0;

 private:
  void compare(const Case& c, const char* what, const unsigned char* got, const Bytes& wanted,
               const Placement& at) {
    ++launches;
    elements += at.size;
    for (std::int64_t i = 0; i < at.size; ++i) {
      if (!same(dtype_, got + i * item_, wanted.data() + i * item_)) report(c, what, at, i);
    }
  }

  [[noreturn]] void report(const Case& c, const char* what, const Placement& at, std::int64_t i) {
    fail(std::string(what) + " is wrong at element " + std::to_string(i) + " of " +
         std::to_string(at.size) + ", dtype " + std::to_string(dtype_) + ", row " +
         std::to_string(c.row) + ", offsets " + std::to_string(at.input) + " " +
         std::to_string(at.kept) + " " + std::to_string(at.output) +
         (at.in_place ? ", in place" : ""));
  }

  DType dtype_;
  std::int64_t item_;
  Bytes x_, g_;
  std::int64_t length_;
};

// Sizes about a share, a group, a warp's and a block's tile; starts off by each number of elements.
std::vector<Placement> placements(std::int64_t length, bool all) {
  std::vector<Placement> made;
  made.push_back({length, 0, 0, 0, false});
  made.push_back({0, 0, 0, 0, false});
  if (all) made.push_back({length, 0, 0, 0, true});
  for (std::int64_t size = 1; size <= 33; size += all ? 1 : 8) {
    made.push_back({size, 0, 0, 0, false});
  }
  for (const std::int64_t tile : {512, 1024, 2048, 4096, 8192, 16384}) {
    for (const std::int64_t size : {tile - 1, tile, tile + 1}) {
      if (size <= length && (all || size == tile)) made.push_back({size, 0, 0, 0, false});
    }
  }
  for (int offset = 1; offset < 16; offset += all ? 1 : 6) {
    for (const std::int64_t size : {std::int64_t{77}, all ? length : std::int64_t{9}}) {
      made.push_back({size, offset, 0, 0, false});
      made.push_back({size, 0, offset, 0, false});
      made.push_back({size, 0, 0, offset, false});
      made.push_back({size, offset, offset, offset, true});
    }
  }
  return made;
}

void run_dtype(DType dtype, const Bytes& file, const std::string& folder, bool all) {
  Matrix matrix(dtype, folder);
  const auto* rows = reinterpret_cast<const double*>(file.data());
  const int count = static_cast<int>(file.size() / sizeof(double) / kRow);
  const std::vector<Placement> every = placements(matrix.length(), all);
  const bool half = dtype == kBfloat16 || dtype == kFloat16;
  int programs = 0;
  for (int row = 0; row < count; ++row) {
    const double* numbers = rows + static_cast<std::ptrdiff_t>(row) * kRow;
    if ((numbers[kProgramSize] != 0) != half) continue;
    const Case c{dtype, program_of(numbers), row};
    const Reference wanted = matrix.expected(c.program, c.program);
    for (const Placement& at : every) {
      matrix.forward(c, wanted, at);
      matrix.backward(c, wanted, at);
    }
    if (row % 5 == 0) matrix.whole_tiles(c, wanted);
    // λ in a tensor of each dtype: 0.375 is a number of all of them.
    const float single = 0.375f;
    const double wide = 0.375;
    const std::uint16_t brain = 0x3ec0, narrow = 0x3600;
    const void* scales[kDTypes] = {&single, &wide, &brain, &narrow};
    Program scaled = c.program;
    scaled.scale *= 0.375;
    const Reference by_scale = matrix.expected(c.program, scaled);
    for (int type = 0; type < kDTypes; ++type) {
      matrix.backward(c, by_scale, every.front(), scales[type], static_cast<DType>(type));
    }
    ++programs;
  }
  std::printf("dtype %d: %d programs, %lld launches, %lld elements equal\n", dtype, programs,
              static_cast<long long>(matrix.launches), static_cast<long long>(matrix.elements));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) fail("usage: cuda_on_host PROGRAMS FOLDER EFFORT");
  try {
    const Bytes file = contents(arguments[1]);
    for (int dtype = 0; dtype < kDTypes; ++dtype) {
      run_dtype(static_cast<DType>(dtype), file, arguments[2], arguments[3][0] == '1');
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
  return 0;
}
