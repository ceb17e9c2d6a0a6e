#include "vector_portable.h"

#define PYREVGRAD_ISA portable
#define PYREVGRAD_TABLE kernels_portable
#include "kernels.h"
