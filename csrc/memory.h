// What an operation says where torch gave it no memory. The C interface of the stable ABI tells
// neither why nor how much was there, so who catches these words asks torch for as much by another
// interface, which raises torch's own error: torch.OutOfMemoryError on CUDA, with its figures.
#pragma once

namespace pyrevgrad {

// Also in pyrevgrad/autograd.py.
constexpr const char* kNoMemory = "torch gave no memory for";

}  // namespace pyrevgrad
