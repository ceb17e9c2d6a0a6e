#include "launch.cuh"
#include "table.h"

namespace pyrevgrad::cuda {

template void forward<Bfloat16>(const Call&);
template void backward<Bfloat16>(const Call&);

}  // namespace pyrevgrad::cuda
