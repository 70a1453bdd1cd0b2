// What backend `tensorrt` needs of the CUDA runtime: a stream, memory that grows, and errors as sentences.
#ifndef DIFFUSEVAE_BACKENDS_TENSORRT_CUDA_H
#define DIFFUSEVAE_BACKENDS_TENSORRT_CUDA_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "backends/one_process.h"
#include "error.h"

namespace diffusevae {

// The driver does not survive a fork(): a child's first call fails, initialised again or not.
inline OneProcess& cuda_process() {
    static OneProcess only("CUDA");
    return only;
}

inline void check_cuda(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    throw Error(DIFFUSEVAE_BACKEND,
                "tensorrt, " + what + ": found CUDA error " + std::to_string(int(status)) + " ("
                + cudaGetErrorString(status) + "), expected success; check the GPU with nvidia-smi, its free memory, "
                "and that the driver is no older than the CUDA runtime that this was linked with");
}

// Makes a device the thread's current one for a scope; the caller's own is put back. Error in a child of fork().
class DeviceScope {
public:
    explicit DeviceScope(int device) {
        cuda_process().check();
        check_cuda(cudaGetDevice(&before_), "the current device");
        if (before_ != device) check_cuda(cudaSetDevice(device), "device " + std::to_string(device));
        changed_ = before_ != device;
    }
    ~DeviceScope() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

private:
    int before_ = 0;
    bool changed_ = false;
};

// A stream of the current device.
class Stream {
public:
    Stream() { check_cuda(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "a stream"); }
    ~Stream() {
        if (!cuda_process().elsewhere()) cudaStreamDestroy(handle_);
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    cudaStream_t handle() const { return handle_; }
    void synchronize(const std::string& what) { check_cuda(cudaStreamSynchronize(handle_), what); }

private:
    cudaStream_t handle_ = nullptr;
};

// Device memory of at least the size last asked for; growing loses what it held.
class DeviceMemory {
public:
    DeviceMemory() = default;
    ~DeviceMemory() {
        if (!cuda_process().elsewhere()) cudaFree(address_);
    }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    void* at_least(size_t bytes) {
        if (bytes <= size_) return address_;
        cudaFree(address_);
        address_ = nullptr;
        size_ = 0;
        check_cuda(cudaMalloc(&address_, bytes), std::to_string(bytes) + " bytes of device memory");
        size_ = bytes;
        return address_;
    }

private:
    void* address_ = nullptr;
    size_t size_ = 0;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_TENSORRT_CUDA_H
