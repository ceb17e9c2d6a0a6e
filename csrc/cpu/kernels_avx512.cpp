#include "vector_avx512.h"

#define PYREVGRAD_ISA avx512
#define PYREVGRAD_TABLE kernels_avx512
#define PYREVGRAD_UNROLLS true
#include "mathematics.h"
// After the mathematics that its formulas call.
#include "kernels.h"
