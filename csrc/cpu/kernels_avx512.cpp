#define PYREVGRAD_ISA avx512
#define PYREVGRAD_UNROLLS true
#define PYREVGRAD_SIXTEEN
#include "sixteen_avx512.h"
#include "vector_avx512.h"
// After the types that it calls.
#include "mathematics.h"
// After the mathematics that its formulas call.
#include "kernels.h"

namespace pyrevgrad {
constexpr KernelTable kernels_avx512 = avx512::table("avx512", true);
}
