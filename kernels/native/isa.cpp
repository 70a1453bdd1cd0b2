// The instruction sets that can run here. Asked of the processor (cpuid), of what the system saves (XCR0) and, for tiles,
// of Linux.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace diffusevae {
namespace native {

#if defined(__x86_64__) && !defined(DV_NO_TARGETS)

extern const Kernels kAvx2, kAvx512, kAvx512Bf16, kAmx;

namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

struct Feature {
    const char* name;
    uint32_t leaf, subleaf;
    Register where;
    int bit;
};

const Feature kAvx2Features[] = {{"avx2", 7, 0, kEbx, 5}, {"fma", 1, 0, kEcx, 12}, {"f16c", 1, 0, kEcx, 29}};
const Feature kAvx512Features[] = {{"avx512f", 7, 0, kEbx, 16},  {"avx512dq", 7, 0, kEbx, 17}, {"avx512bw", 7, 0, kEbx, 30},
                                   {"avx512vl", 7, 0, kEbx, 31}, {"avx512_vnni", 7, 0, kEcx, 11}};
const Feature kAvx512Bf16Features[] = {{"avx512_bf16", 7, 1, kEax, 5}};
const Feature kAmxFeatures[] = {{"amx_tile", 7, 0, kEdx, 24},
                                {"amx_bf16", 7, 0, kEdx, 22},
                                {"amx_int8", 7, 0, kEdx, 25}};

bool has(const Feature& f) {
    uint32_t r[4] = {};
    if (__get_cpuid_count(f.leaf, f.subleaf, &r[0], &r[1], &r[2], &r[3]) == 0) return false;
    return (r[f.where] >> f.bit & 1u) != 0;
}

// The register state that the operating system saves: bits 1, 2 AVX; 5 to 7 AVX-512; 17, 18 tiles.
uint64_t saved_state() {
    if (!has({"osxsave", 1, 0, kEcx, 27})) return 0;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

bool tiles_permitted() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

template <size_t kCount>
bool all(const Feature (&features)[kCount], std::string& why) {
    for (const Feature& f : features)
        if (!has(f)) {
            why = std::string("the processor has no ") + f.name;
            return false;
        }
    return true;
}

bool saved(uint64_t wanted, std::string& why) {
    if ((saved_state() & wanted) == wanted) return true;
    why = "the operating system does not save the registers";
    return false;
}

bool runs_avx2(std::string& why) { return all(kAvx2Features, why) && saved(0x6, why); }

bool runs_avx512(std::string& why) { return runs_avx2(why) && all(kAvx512Features, why) && saved(0xE6, why); }

bool runs_avx512_bf16(std::string& why) { return runs_avx512(why) && all(kAvx512Bf16Features, why); }

bool runs_amx(std::string& why) {
#if defined(DV_SOFTWARE_TILES)
    return runs_avx512_bf16(why);   // tests only (tiles.h)
#endif
    if (!runs_avx512_bf16(why) || !all(kAmxFeatures, why) || !saved(0x600E6, why)) return false;
    if (tiles_permitted()) return true;
    why = "the operating system does not permit tile state (Linux 5.16 or newer does)";
    return false;
}

}  // namespace

const Kernels* kernels_of(const std::string& isa, std::string& why) {
    if (isa == "amx") return runs_amx(why) ? &kAmx : nullptr;
    if (isa == "avx512_bf16") return runs_avx512_bf16(why) ? &kAvx512Bf16 : nullptr;
    if (isa == "avx512") return runs_avx512(why) ? &kAvx512 : nullptr;
    if (isa == "avx2") return runs_avx2(why) ? &kAvx2 : nullptr;
    why = "there is no such instruction set: expected amx, avx512_bf16, avx512 or avx2";
    return nullptr;
}

#else

const Kernels* kernels_of(const std::string&, std::string& why) {
    why = "this library was built without native kernels: they need gcc or clang on x86-64";
    return nullptr;
}

#endif

const Kernels* best_kernels(std::string& why) {
    for (const char* isa : {"amx", "avx512_bf16", "avx512", "avx2"})
        if (const Kernels* kernels = kernels_of(isa, why)) return kernels;
    return nullptr;
}

}  // namespace native
}  // namespace diffusevae
