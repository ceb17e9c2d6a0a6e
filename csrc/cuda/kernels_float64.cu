#include "launch.cuh"
#include "table.h"

namespace pyrevgrad::cuda {

template void forward<double>(const Call&);
template void backward<double>(const Call&);

}  // namespace pyrevgrad::cuda
