#define PYREVGRAD_ISA avx2
#define PYREVGRAD_UNROLLS true
#define PYREVGRAD_SIXTEEN
#include "sixteen_avx2.h"
#include "vector_avx2.h"
// After the types that it calls.
#include "mathematics.h"
// After the mathematics that its formulas call.
#include "kernels.h"

namespace pyrevgrad {
constexpr KernelTable kernels_avx2 = avx2::table("avx2", true);
}
