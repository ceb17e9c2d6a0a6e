// What the binding asks of the CUDA runtime, without its headers.
#pragma once

#include <string>

namespace pyrevgrad::cuda {

// The CUDA version that the library was built with, then what it holds code for: "13.0,sm_90,...".
std::string build();

// Why the kernels cannot run on device `index`, as a sentence with its cure; empty where they can.
std::string problem(int index);

// Make `index` the device of this thread for the library's own copy of the runtime.
void use_device(int index);

// Throw, in a sentence, if the last launch of this thread failed.
void check_launch();

}  // namespace pyrevgrad::cuda
