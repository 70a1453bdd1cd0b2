// What must hold of runs whatever they compute? Same bits for any batch and threads, the sampler's loop, faults answered.
#ifndef DIFFUSEVAE_TESTS_NATIVE_RUNS_H
#define DIFFUSEVAE_TESTS_NATIVE_RUNS_H

#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "native_check.h"

namespace {

// A small denoiser: patches, blocks at two sizes, attention, concatenation; ports x, cond, row, eps.
struct Denoiser {
    Builder b{5};
    int32_t x, cond, eps;

    explicit Denoiser(bool int8, int32_t side = 8) {
        x = b.port(DV_NATIVE_PORT_MAP, false, 3, side, side);
        cond = b.port(DV_NATIVE_PORT_MAP, false, 3, side, side);
        const int32_t stem = b.conv({b.input({x, cond}, 3)}, 32, Builder::one());
        ConvOptions o;
        o.groups = 32;
        o.activation = DV_NATIVE_SILU;
        o.bias_row = true;
        o.int8 = int8;
        const int32_t h = b.conv({stem}, 32, o);
        o.bias_row = false;
        o.residual = stem;
        const int32_t first = b.conv({h}, 32, o);
        ConvOptions down;
        down.stride = 2;
        const int32_t small = b.conv({first}, 32, down);
        ConvOptions qkv = Builder::one();
        qkv.groups = 8;
        const int32_t attended = b.attention(b.conv({small}, 96, qkv), 4, 0.25f);
        ConvOptions up;
        up.upsample = true;
        const int32_t large = b.conv({attended}, 48, up);
        o = ConvOptions();
        o.groups = 16;
        o.activation = DV_NATIVE_SILU;
        o.skips = {large, stem};
        o.int8 = int8;
        const int32_t joined = b.conv({large, stem}, 32, o);
        o = ConvOptions();
        o.groups = 32;
        o.activation = DV_NATIVE_SILU;
        eps = b.conv({joined}, 3, o, true);
    }
};

void check_same_bits(const char* isa) {
    const struct { const char* name; bool int8; int32_t side; } cases[] = {{"", false, 8}, {" int8", true, 8}, {" winograd", false, 18}};
    for (const auto& c : cases) {
        const std::string name = std::string(isa) + " same bits for any batch and threads" + c.name;
        if (name.find(wanted) == std::string::npos) continue;
        Denoiser d(c.int8, c.side);
        constexpr int64_t kMost = 19;
        const Inputs all = draw_inputs(d.b, kMost, int32_t(kMost), 0);
        const Handle one(d.b, isa, 1);
        const Result want = run(one.handle, d.b, all, kMost, int32_t(kMost));
        bool good = want.status == DV_NATIVE_OK;
        for (int32_t threads : {1, 2, 3, 5})
            for (int64_t batch : {int64_t(1), int64_t(2), int64_t(5), kMost}) {
                const Handle open(d.b, isa, threads);
                Inputs some = all;
                for (size_t p = 0; p < some.ports.size(); ++p) some.ports[p].resize(some.ports[p].size() / kMost * size_t(batch));
                const Result got = run(open.handle, d.b, some, batch, int32_t(batch));
                const std::vector<float>& bits = got.ports[size_t(d.eps)];
                good = good && got.status == DV_NATIVE_OK
                       && std::memcmp(bits.data(), want.ports[size_t(d.eps)].data(), bits.size() * sizeof(float)) == 0;
            }
        report(good, name, "");
    }
}

struct StepsRun {
    static constexpr int64_t kSteps = 3, kSamples = 2, kCount = 3 * 8 * 8;
    Inputs in;
    std::vector<float> rows, eps, x0, coefficients;
    std::vector<uint64_t> seeds{7, uint64_t(1) << 63};
    dv_native_steps s{};

    StepsRun(const Denoiser& d, bool guided) {
        const int64_t lanes = guided ? 2 * kSamples : kSamples;
        in = draw_inputs(d.b, lanes, 1, 0);
        const int32_t width = d.b.ports[size_t(d.b.row_port)].channels;
        Random random(6);
        rows.resize(size_t(kSteps * width));
        for (float& v : rows) v = random.uniform(-1.0f, 1.0f);
        for (int64_t i = 0; i < kSteps; ++i) {
            const float row[10] = {1.1f, -0.4f, 0.1f, 0.5f, i > 0 ? 0.2f : 0.0f, 0.3f, 0.1f, 0.0f, 0.05f, 4.0f};
            coefficients.insert(coefficients.end(), row, row + 10);
        }
        eps.resize(size_t(lanes * kCount));
        x0.resize(size_t(2 * kSamples * kCount));
        s.x_port = d.x, s.cond_port = d.cond, s.row_port = d.b.row_port, s.eps_port = d.eps;
        s.steps = int32_t(kSteps), s.row_count = 1, s.samples = kSamples, s.lanes = lanes;
        s.rows = rows.data(), s.coefficients = coefficients.data();
        s.x = in.ports[size_t(d.x)].data(), s.cond = in.ports[size_t(d.cond)].data();
        s.eps = eps.data(), s.x0 = x0.data(), s.seeds = seeds.data(), s.guidance = guided ? 0.7f : 0.0f;
    }
};

// The same loop by hand, over dv_native_run and dv_update.
std::vector<float> steps_by_hand(dv_native* handle, const Denoiser& d, StepsRun& r) {
    std::vector<float>& x = r.in.ports[size_t(d.x)];
    const int64_t state = StepsRun::kSamples * StepsRun::kCount;
    std::vector<float> x0(size_t(state), 0.0f), previous(size_t(state), 0.0f);
    const int32_t width = d.b.ports[size_t(d.b.row_port)].channels;
    for (int64_t i = 0; i < StepsRun::kSteps; ++i) {
        if (r.s.lanes > r.s.samples) std::copy_n(x.begin(), state, x.begin() + state);
        Inputs in = r.in;
        in.ports[size_t(d.b.row_port)].assign(r.rows.begin() + i * width, r.rows.begin() + (i + 1) * width);
        const Result got = run(handle, d.b, in, r.s.lanes, 1);
        dv_update_args a{};
        a.row = r.coefficients.data() + 10 * i;
        a.x = a.out = x.data();
        a.eps = got.ports[size_t(d.eps)].data();
        a.eps_uncond = r.s.lanes > r.s.samples ? a.eps + state : nullptr;
        a.cond = r.s.cond;
        a.x0_prev = i > 0 ? previous.data() : nullptr;
        a.x0_out = x0.data();
        a.seeds = r.seeds.data();
        a.samples = StepsRun::kSamples;
        a.count = a.noise_stride = StepsRun::kCount;
        a.step = uint32_t(i);
        a.guidance = r.s.guidance;
        a.threads = 1;
        dv_update(&a);
        std::swap(x0, previous);
    }
    x.resize(size_t(state));
    return x;
}

void check_steps(const char* isa) {
    Denoiser d(false);
    const Handle open(d.b, isa, 2);
    char error[256];
    for (bool guided : {false, true}) {
        const std::string name = std::string(isa) + " steps in one call are the steps by hand" + (guided ? ", guided" : "");
        if (name.find(wanted) == std::string::npos) continue;
        StepsRun whole(d, guided), hand(d, guided);
        const int32_t status = dv_native_run_steps(open.handle, &whole.s, error, sizeof error);
        const std::vector<float> want = steps_by_hand(open.handle, d, hand);
        const bool same = std::memcmp(want.data(), whole.s.x, want.size() * sizeof(float)) == 0;
        report(status == DV_NATIVE_OK && same && whole.s.failed_step == -1, name, error);
    }
    StepsRun bad(d, false);
    bad.coefficients[10 * 1 + 5] = NAN;  // the second step's x is NaN, the third step's eps tells
    const int32_t status = dv_native_run_steps(open.handle, &bad.s, error, sizeof error);
    report(status == DV_NATIVE_NOT_FINITE && bad.s.failed_step == 2, std::string(isa) + " a step that is not finite is named", error);
    StepsRun wrong(d, false);
    wrong.s.x_port = 77;
    const int32_t answer = dv_native_run_steps(open.handle, &wrong.s, error, sizeof error);
    report(answer == DV_NATIVE_BAD_CALL, std::string(isa) + " a wrong port is refused", error);
}

// A child of fork: the parent's handle is refused, a clone of it works.
bool fork_is_survived(dv_native* handle, const Denoiser& d, const Inputs& in) {
    const pid_t child = fork();
    if (child == 0) {
        char error[256];
        dv_native* clone = nullptr;
        const bool refused = run(handle, d.b, in, 2, 1).status == DV_NATIVE_FORKED;
        const bool cloned = dv_native_clone(handle, 2, &clone, error, sizeof error) == DV_NATIVE_OK
                            && run(clone, d.b, in, 2, 1).status == DV_NATIVE_OK;
        dv_native_close(clone);
        dv_native_close(handle);
        _exit(refused && cloned ? 0 : 1);
    }
    int status = 1;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void check_handles(const char* isa) {
    Denoiser d(true);
    const Handle open(d.b, isa, 2);
    const Inputs in = draw_inputs(d.b, 2, 1, 0);
    const Result want = run(open.handle, d.b, in, 2, 1);
    std::vector<std::thread> users;
    std::vector<char> good(6, 0);
    for (size_t i = 0; i < good.size(); ++i)
        users.emplace_back([&, i] {
            char error[256];
            dv_native* clone = nullptr;
            if (dv_native_clone(open.handle, int32_t(1 + i % 3), &clone, error, sizeof error) != DV_NATIVE_OK) return;
            good[i] = 1;
            for (int round = 0; round < 10; ++round) {
                const Result got = run(clone, d.b, in, 2, 1);
                if (got.ports[size_t(d.eps)] != want.ports[size_t(d.eps)]) good[i] = 0;
            }
            dv_native_close(clone);
        });
    for (std::thread& user : users) user.join();
    report(std::count(good.begin(), good.end(), 1) == 6, std::string(isa) + " clones in threads give the serial result", "");
    report(fork_is_survived(open.handle, d, in), std::string(isa) + " a forked child is told, and clones", "");
    char error[256];
    dv_native* none = nullptr;
    const int32_t status = dv_native_open(&d.b.program(), isa, 0, &none, error, sizeof error);
    report(status == DV_NATIVE_BAD_CALL && none == nullptr, std::string(isa) + " no threads are refused", error);
    const Result few = run(open.handle, d.b, in, 0, 1);
    report(few.status == DV_NATIVE_BAD_CALL, std::string(isa) + " an empty batch is refused", few.error);
    const Handle many(d.b, isa, 37);
    report(run(many.handle, d.b, in, 2, 1).ports[size_t(d.eps)] == want.ports[size_t(d.eps)],
           std::string(isa) + " more threads than work", "");
}

// One field of one struct is overwritten; whatever opens must also run.
void check_hostile_programs(const char* isa) {
    const std::string name = std::string(isa) + " hostile programs are refused or run";
    if (name.find(wanted) == std::string::npos) return;
    Random random(1234);
    const int32_t values[] = {-1, 0, 1, 2, 3, 5, 16, 31, 33, 64, 255, 4096, 1 << 20, INT32_MAX, INT32_MIN, -2, 0x7FC00000};
    int refused = 0, ran = 0;
    for (int round = 0; round < 3000; ++round) {
        Denoiser d(round % 2 == 1, round % 32 == 0 ? 16 : 8);
        const int which = random.below(8);
        char* base = which == 0   ? reinterpret_cast<char*>(&d.b.ports[size_t(random.below(int32_t(d.b.ports.size())))])
                     : which == 1 ? reinterpret_cast<char*>(&d.b.tensors[size_t(random.below(int32_t(d.b.tensors.size())))])
                                  : reinterpret_cast<char*>(&d.b.ops[size_t(random.below(int32_t(d.b.ops.size())))]);
        const size_t size = which == 0 ? sizeof(dv_native_port) : which == 1 ? sizeof(dv_native_tensor) : sizeof(dv_native_op);
        const int32_t value = values[random.below(int32_t(sizeof values / sizeof *values))];
        std::memcpy(base + 4 * size_t(random.below(int32_t(size / 4))), &value, 4);
        const Handle open(d.b, isa, 2);
        if (open.status != DV_NATIVE_OK) {
            refused += open.status == DV_NATIVE_BAD_PROGRAM && !open.text.empty();
            continue;
        }
        dv_native_info info;
        dv_native_describe(open.handle, &info);
        if (info.arena_bytes > int64_t(1) << 28) continue;
        ran += run(open.handle, d.b, draw_inputs(d.b, 2, 1, 0), 2, d.b.row_port == DV_NATIVE_NONE ? 0 : 1).status == DV_NATIVE_OK;
    }
    report(refused > 1000 && ran > 100, name, std::to_string(refused) + " refused, " + std::to_string(ran) + " ran");
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_RUNS_H
