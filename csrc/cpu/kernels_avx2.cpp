#include "vector_avx2.h"

#define PYREVGRAD_ISA avx2
#define PYREVGRAD_TABLE kernels_avx2
#define PYREVGRAD_UNROLLS true
#include "mathematics.h"
// After the mathematics that its formulas call.
#include "kernels.h"
