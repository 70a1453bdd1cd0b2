// Only a stand-in for tests: what nvinfer.cpp asks of cudart.cpp. See README.md.
#ifndef STAND_IN_DEVICE_H
#define STAND_IN_DEVICE_H

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

namespace stand_in {

// Whether STAND_IN_FAIL names this call.
bool must_fail(const char* call);

// Whether `address` begins device memory of at least so many bytes.
bool on_device(const void* address, size_t bytes);

// Puts work into a stream; it is done when the stream is synchronised, with all device memory readable.
void enqueue(cudaStream_t stream, std::function<void()> work);

void count(int change);  // objects that exist

}  // namespace stand_in

extern "C" int stand_in_leaks(void);  // memory, streams and library objects that were not given back

#endif  // STAND_IN_DEVICE_H
