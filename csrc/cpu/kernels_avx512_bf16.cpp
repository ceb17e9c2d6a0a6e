// The kernels of bfloat16 where the processor rounds to it by one instruction.
#define PYREVGRAD_ISA avx512_bf16
#define PYREVGRAD_UNROLLS true
#define PYREVGRAD_SIXTEEN
#include "sixteen_avx512.h"
#include "vector_avx512.h"
// After the types that it calls.
#include "mathematics.h"
// After the mathematics that its formulas call.
#include "kernels.h"

namespace pyrevgrad {
constexpr Kernels kernels_avx512_bf16 = avx512_bf16::kernels_of<Bfloat16>;
}
