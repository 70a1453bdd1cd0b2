// CUDA kernels without a GPU: every thread of every block is a fibre, and a barrier is a change of fibres.
//
// The source is kernels/cuda/update.cu itself. Blocks, and threads between two barriers, run in an order drawn from `order`
// (0: ascending): a kernel whose result depends on that order is wrong on a GPU as well.
#include "shim.h"

#include "update.cu"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

enum class State { kReady, kWaiting, kDone };

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    State state = State::kDone;
};

ucontext_t scheduler;
Fibre* running;
std::function<void()> kernel;

void body() {
    kernel();
    running->state = State::kDone;  // returning goes on in the scheduler: uc_link
}

std::vector<uint32_t> permutation(uint32_t n, std::mt19937* random) {
    std::vector<uint32_t> indices(n);
    std::iota(indices.begin(), indices.end(), 0u);
    if (random != nullptr) std::shuffle(indices.begin(), indices.end(), *random);
    return indices;
}

// Runs one block; false where some threads waited at a barrier that others never reached.
bool run_block(std::vector<Fibre>& fibres, std::mt19937* random) {
    const uint32_t threads = uint32_t(fibres.size());
    for (Fibre& fibre : fibres) {
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = &scheduler;
        makecontext(&fibre.context, body, 0);
        fibre.state = State::kReady;
    }
    for (;;) {
        uint32_t done = 0;
        for (const uint32_t t : permutation(threads, random)) {
            running = &fibres[t];
            threadIdx = Index{t, 0, 0};
            running->state = State::kReady;
            swapcontext(&scheduler, &running->context);
            done += running->state == State::kDone;
        }
        if (done == threads) return true;
        if (done > 0) return false;
    }
}

template <class... A, size_t... I>
void call(void (*function)(A...), const uint64_t* words, std::index_sequence<I...>) {
    const auto value = [](auto* to, uint64_t word) { std::memcpy(to, &word, sizeof word); };
    const auto read = [&](auto type, size_t i) {
        decltype(type) argument;
        static_assert(sizeof argument == sizeof(uint64_t), "every argument is one 64-bit word");
        value(&argument, words[i]);
        return argument;
    };
    function(read(A{}, I)...);
}

template <class... A>
bool bind(const char* wanted, const char* name, void (*function)(A...), const uint64_t* words, int64_t count) {
    if (std::strcmp(wanted, name) != 0 || count != int64_t(sizeof...(A))) return false;
    kernel = [=] { call(function, words, std::index_sequence_for<A...>()); };
    return true;
}

}  // namespace

void __syncthreads() {
    running->state = State::kWaiting;
    swapcontext(&running->context, &scheduler);
}

// 0: done; 1: no kernel of that name and number of arguments; 2: not all threads of a block reached a barrier; 3: the
// launch shape is none that the kernels are compiled for.
extern "C" int32_t host_launch(const char* name, const uint32_t* grid, const uint32_t* block, const uint64_t* words,
                               int64_t count, uint32_t order) {
    if (!bind(name, "dv_update_plain", dv_update_plain, words, count)
        && !bind(name, "dv_update_full", dv_update_full, words, count) && !bind(name, "dv_start", dv_start, words, count)
        && !bind(name, "dv_finite", dv_finite, words, count) && !bind(name, "dv_to_uint8", dv_to_uint8, words, count))
        return 1;
    gridDim = Index{grid[0], grid[1], grid[2]};
    blockDim = Index{block[0], block[1], block[2]};
    if (block[0] < 1 || block[0] > 128 || block[1] != 1 || block[2] != 1) return 3;
    if (grid[0] < 1 || grid[1] < 1 || grid[1] > 65535 || grid[2] < 1 || grid[2] > 65535) return 3;
    std::mt19937 random(order);
    std::mt19937* shuffle = order == 0 ? nullptr : &random;
    std::vector<Fibre> fibres(block[0]);
    for (const uint32_t b : permutation(grid[0] * grid[1] * grid[2], shuffle)) {
        blockIdx = Index{b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        if (!run_block(fibres, shuffle)) return 2;
    }
    return 0;
}
