#define PYREVGRAD_ISA portable
#define PYREVGRAD_UNROLLS false
#include "vector_portable.h"
// After the types that it calls.
#ifndef PYREVGRAD_C_LIBRARY
#include "mathematics.h"
#endif
// After the mathematics that its formulas call.
#include "kernels.h"

namespace pyrevgrad {
constexpr KernelTable kernels_portable = portable::table("portable", false);
}
