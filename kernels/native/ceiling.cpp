// The machine's ceilings. All threads at once, each on operands of its own, for a given time.
#include "ceiling.h"

#include <chrono>
#include <vector>

#include "memory.h"
#include "team.h"

namespace diffusevae {
namespace native {
namespace {

constexpr int64_t kOperandBytes = 256 << 10;           // fits L2, not L1
constexpr int64_t kStreamBytes = int64_t(512) << 20;
constexpr int64_t kRounds = 16;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Bit patterns that are small numbers in bf16, float32 and 8 bits, and no two alike in a row: zeros take less power.
void fill(uint8_t* to, int64_t bytes) {
    uint32_t state = 1;
    for (int64_t i = 0; i + 1 < bytes; i += 2) {
        state = state * 1664525u + 1013904223u;
        const uint16_t value = uint16_t(0x3F00u | (state >> 24 & 0x7Fu) | (state >> 16 & 0x8000u));
        to[i] = uint8_t(value);
        to[i + 1] = uint8_t(value >> 8);
    }
}

uint64_t read_all(const uint8_t* from, int64_t bytes) {
    const uint64_t* words = reinterpret_cast<const uint64_t*>(from);
    uint64_t sums[8] = {};
    for (int64_t i = 0; i + 8 <= bytes / 8; i += 8)
        for (int64_t k = 0; k < 8; ++k) sums[k] += words[i + k];
    uint64_t sum = 0;
    for (uint64_t s : sums) sum += s;
    return sum;
}

// Repeats round(share) in each thread until the time is over.
template <class Round>
class Rounds final : public Job {
public:
    Rounds(int32_t threads, double seconds, const Round& round)
        : round_(round), begin_(now()), end_(begin_ + seconds), done_(size_t(threads), 0.0) {}

    int32_t pieces(int32_t) override { return 1; }
    void over(int32_t) override {}
    void run(const Piece& piece) override {
        double sum = 0.0;
        do sum += round_(piece.share);
        while (now() < end_);
        done_[size_t(piece.share)] = sum / (now() - begin_);
    }

    // What the rounds returned, a second.
    double total() const {
        double total = 0.0;
        for (double d : done_) total += d;
        return total;
    }

private:
    const Round& round_;
    double begin_, end_;
    std::vector<double> done_;
};

template <class Round>
double rate(const Kernels& kernels, int32_t threads, double seconds, const Round& round) {
    Team team(threads, kernels.enter, kernels.leave);
    Rounds<Round> rounds(threads, seconds, round);
    team.run(rounds, 1);
    return rounds.total();
}

}  // namespace

double measure_ceiling(const std::string& what, const Kernels* kernels, int32_t threads, double seconds) {
    if (what == "stream") {
        const int64_t share = kStreamBytes / threads / 64 * 64;
        const Memory memory(share * threads);
        for (int64_t i = 0; i < share * threads; i += 4096) memory.at()[i] = 1;
        std::vector<uint64_t> sums(size_t(threads), 0);
        return rate(*kernels, threads, seconds, [&](int32_t part) {
            sums[size_t(part)] += read_all(memory.at() + part * share, share);
            return double(share);
        });
    }
    const int32_t kind = what == "bf16_l2"   ? kCeilingBf16
                         : what == "int8_l2" ? kCeilingInt8
                         : what == "f32_l2"  ? kCeilingF32
                                             : -1;
    if (kind < 0) throw Failure(DV_NATIVE_BAD_CALL, "what is '" + what + "', expected bf16_l2, int8_l2, f32_l2 or stream");
    const Memory memory(kOperandBytes * threads);
    fill(memory.at(), memory.bytes());
    const double result = rate(*kernels, threads, seconds, [&](int32_t part) {
        return kernels->ceiling(kind, memory.at() + part * kOperandBytes, kOperandBytes, kRounds);
    });
    if (result <= 0.0) throw Failure(DV_NATIVE_UNSUPPORTED, std::string(kernels->name) + " has no unit for " + what);
    return result;
}

}  // namespace native
}  // namespace diffusevae
