// Only a stand-in for tests: device memory that the host cannot touch, streams that run when synchronised (README.md).
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "device.h"

struct CUstream_st {
    std::vector<std::function<void()>> work;
};

namespace {

std::mutex lock;
std::map<const void*, size_t> blocks;  // of device memory, by address
int objects = 0;
thread_local int current = 0;

size_t pages(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
}

void protect(int mode) {
    for (const auto& [address, bytes] : blocks) mprotect(const_cast<void*>(address), pages(bytes), mode);
}

}  // namespace

namespace stand_in {

bool must_fail(const char* call) {
    const char* name = std::getenv("STAND_IN_FAIL");
    return name != nullptr && std::strcmp(name, call) == 0;
}

bool on_device(const void* address, size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto block = blocks.find(address);
    return block != blocks.end() && block->second >= bytes;
}

void enqueue(cudaStream_t stream, std::function<void()> work) { stream->work.push_back(std::move(work)); }

void count(int change) {
    const std::lock_guard<std::mutex> guard(lock);
    objects += change;
}

}  // namespace stand_in

extern "C" {

int stand_in_leaks(void) {
    const std::lock_guard<std::mutex> guard(lock);
    return objects + int(blocks.size());
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "invalid value";
}

cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return stand_in::must_fail("cudaGetDevice") ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    current = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    const char* sm = std::getenv("STAND_IN_SM");
    const int number = sm == nullptr ? 86 : std::atoi(sm);
    std::snprintf(properties->name, sizeof properties->name, "Stand-in");
    properties->major = number / 10;
    properties->minor = number % 10;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, size_t bytes) {
    if (stand_in::must_fail("cudaMalloc")) return cudaErrorMemoryAllocation;
    void* block = mmap(nullptr, pages(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return cudaErrorMemoryAllocation;
    const std::lock_guard<std::mutex> guard(lock);
    blocks[block] = bytes;
    *address = block;
    return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
    const std::lock_guard<std::mutex> guard(lock);
    const auto block = blocks.find(address);
    if (address == nullptr) return cudaSuccess;
    if (block == blocks.end()) return cudaErrorInvalidValue;
    munmap(address, pages(block->second));
    blocks.erase(block);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
    *stream = new CUstream_st;
    stand_in::count(1);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    stand_in::count(-1);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const std::lock_guard<std::mutex> guard(lock);
    protect(PROT_READ | PROT_WRITE);
    for (const auto& work : stream->work) work();
    stream->work.clear();
    protect(PROT_NONE);
    return stand_in::must_fail("cudaStreamSynchronize") ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (stand_in::must_fail("cudaMemcpyAsync")) return cudaErrorInvalidValue;
    if (!stand_in::on_device(kind == cudaMemcpyHostToDevice ? to : from, bytes)) return cudaErrorInvalidValue;
    stand_in::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
    return cudaSuccess;
}

}  // extern "C"
