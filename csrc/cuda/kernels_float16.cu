#include "launch.cuh"
#include "table.h"

namespace pyrevgrad::cuda {

template void forward<Half>(const Call&);
template void backward<Half>(const Call&);

}  // namespace pyrevgrad::cuda
