#include <cuda_runtime_api.h>

#include <stdexcept>

#include "runtime.h"

// Such as "sm_80,sm_90,compute_90"; set by the build.
#ifndef PYREVGRAD_CUDA_CODE
#error "PYREVGRAD_CUDA_CODE is not defined"
#endif

namespace pyrevgrad::cuda {
namespace {

// Compiled for what the other kernels are compiled for, so that asking it answers for them.
__global__ void probe() {}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string device_name(int index) {
  cudaDeviceProp found;
  if (cudaGetDeviceProperties(&found, index) != cudaSuccess) return "cuda:" + std::to_string(index);
  return std::string(found.name) + " (compute capability " + std::to_string(found.major) + "." +
         std::to_string(found.minor) + ")";
}

std::string sentence(cudaError_t error, int index) {
  int driver = 0;
  switch (error) {
    case cudaSuccess:
      return "";
    case cudaErrorInsufficientDriver:
      if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        return "no NVIDIA driver is installed; install one";
      }
      return "the NVIDIA driver is for CUDA " + version(driver) + " and the library for CUDA " +
             version(CUDART_VERSION) +
             "; update the driver, or build the library with an older nvcc";
    case cudaErrorNoDevice:
      return "there is no CUDA device";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorUnsupportedPtxVersion:
      return device_name(index) + " cannot run what the library holds, which is " +
             PYREVGRAD_CUDA_CODE +
             "; build it with PYREVGRAD_CUDA_ARCHITECTURES naming this device";
    default:
      return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  }
}

}  // namespace

std::string build() { return version(CUDART_VERSION) + "," + PYREVGRAD_CUDA_CODE; }

std::string problem(int index) {
  // The first question may come while the caller captures a graph, which loading code must not end.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(index);
  if (error == cudaSuccess) {
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe));
    if (before != index) cudaSetDevice(before);
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaGetLastError();  // what was found is told, and must not surface at the next launch
  return sentence(error, index);
}

void use_device(int index) {
  const cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("pyrevgrad: cuda:" + std::to_string(index) +
                           " cannot be used: " + sentence(error, index));
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  int index = 0;
  cudaGetDevice(&index);
  throw std::runtime_error("pyrevgrad: a CUDA kernel did not start, or one before it failed: " +
                           sentence(error, index));
}

}  // namespace pyrevgrad::cuda
