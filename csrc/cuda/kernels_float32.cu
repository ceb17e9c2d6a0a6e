#include "launch.cuh"
#include "table.h"

namespace pyrevgrad::cuda {

template void forward<float>(const Call&);
template void backward<float>(const Call&);

}  // namespace pyrevgrad::cuda
