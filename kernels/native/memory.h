// The memory of activations: one anonymous mapping a handle: pages that no run touches cost nothing.
#ifndef DIFFUSEVAE_NATIVE_MEMORY_H
#define DIFFUSEVAE_NATIVE_MEMORY_H

#include <sys/mman.h>

#include <cstdint>

#include "program.h"

namespace diffusevae {
namespace native {

class Memory {
public:
    explicit Memory(int64_t bytes) : bytes_(bytes) {
        constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* at = bytes > 0 ? mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, kFlags, -1, 0) : MAP_FAILED;
        if (at == MAP_FAILED)
            throw Failure(DV_NATIVE_NO_MEMORY, "found no " + std::to_string(bytes) + " bytes of address space for activations");
        at_ = static_cast<uint8_t*>(at);
    }
    ~Memory() { munmap(at_, size_t(bytes_)); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    uint8_t* at() const { return at_; }
    int64_t bytes() const { return bytes_; }

private:
    int64_t bytes_;
    uint8_t* at_ = nullptr;
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_MEMORY_H
