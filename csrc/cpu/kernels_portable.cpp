#include "vector_portable.h"

#define PYREVGRAD_ISA portable
#define PYREVGRAD_UNROLLS false
#include "kernels.h"

namespace pyrevgrad {
constexpr KernelTable kernels_portable = portable::table("portable", false);
}
