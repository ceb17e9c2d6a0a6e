#include "vector_portable.h"

#define PYREVGRAD_ISA portable
#define PYREVGRAD_TABLE kernels_portable
#define PYREVGRAD_UNROLLS false
#define PYREVGRAD_STREAMS false
#include "kernels.h"
