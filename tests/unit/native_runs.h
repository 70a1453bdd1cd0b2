// What holds of runs whatever they compute: the same bits for any batch and threads, the sampler's loop, faults answered.
#ifndef DIFFUSEVAE_TESTS_NATIVE_RUNS_H
#define DIFFUSEVAE_TESTS_NATIVE_RUNS_H

#include <csignal>
#include <dirent.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

#include "diffusevae/row.h"
#include "native_check.h"

namespace {

// A small denoiser: patches, blocks at two sizes, attention, concatenation; ports x, cond, row, eps, and variance where asked for.
struct Denoiser {
    Builder b{5};
    int32_t x, cond, eps, variance = DV_NATIVE_NONE, tokens = DV_NATIVE_NONE;

    explicit Denoiser(bool int8, int32_t side = 8, bool second = false, bool transformer = false) {
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
        qkv.int8 = int8;
        int32_t attended = b.attention(b.conv({small}, 96, qkv), 4, 0.25f);
        if (transformer) attended = transformed(attended, int8);
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
        if (second) variance = b.conv({joined}, 3, o, true);
    }

private:
    // Attention to five tokens, and GEGLU, each behind a LayerNorm and followed by a product; GEGLU leaves an odd number of blocks.
    int32_t transformed(int32_t h, bool int8) {
        tokens = b.port(DV_NATIVE_PORT_TOKENS, false, 96, 5);
        ConvOptions layer = Builder::one(), out = Builder::one(), gated = Builder::one();
        layer.layer = true;
        out.residual = h;
        layer.int8 = gated.int8 = out.int8 = int8;
        gated.activation = DV_NATIVE_GEGLU;
        const int32_t seen = b.attention(b.conv({h}, 32, layer), 4, 0.25f, b.input({tokens}), 16);
        gated.residual = b.conv({seen}, 32, out);
        return b.conv({b.conv({gated.residual}, 192, layer)}, 32, gated);
    }
};

void check_same_bits(const char* isa) {
    const struct { const char* name; bool int8; int32_t side; bool transformer; } cases[] = {
        {"", false, 8, false}, {" int8", true, 8, false}, {" winograd", false, 18, false}, {" transformer", false, 12, true},
        {" int8 transformer", true, 12, true}};
    for (const auto& c : cases) {
        const std::string name = std::string(isa) + " same bits for any batch and threads" + c.name;
        if (name.find(wanted) == std::string::npos) continue;
        Denoiser d(c.int8, c.side, false, c.transformer);
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

// A loop over the denoiser: three rows of two samples, in one lane or two.
struct StepsRun {
    static constexpr int64_t kSteps = 3, kSamples = 2, kCount = 3 * 8 * 8, kState = kSamples * kCount;
    Inputs in;
    std::vector<float> embeddings, x, x_in, e, v, x0, y, h, c, weights;
    std::vector<diffusevae::Row> rows;
    std::vector<uint64_t> seeds{7, uint64_t(1) << 63};
    std::vector<int32_t> constant_ports;
    std::vector<const float*> constants;
    dv_native_steps s{};

    StepsRun(const Denoiser& d, int32_t lanes, bool row_a_sample) {
        const int64_t batch = lanes * kSamples;
        in = draw_inputs(d.b, batch, 1, 0);
        const int64_t row_count = row_a_sample ? batch : 1, width = d.b.ports[size_t(d.b.row_port)].channels;
        Random random(6);
        embeddings = drawn(random, kSteps * row_count * width, 1.0f);
        c = drawn(random, kState, 1.0f);
        x.assign(in.ports[size_t(d.x)].begin(), in.ports[size_t(d.x)].begin() + kState);
        for (int64_t i = 0; i < kSteps; ++i) {
            rows.push_back(plain_row());
            for (int32_t lane = 0; lane < lanes; ++lane) weights.push_back(lane == 0 ? 1.5f : -0.5f);
        }
        x_in.resize(size_t(batch * kCount));
        e.resize(size_t(batch * kCount));
        for (std::vector<float>* room : {&x0, &y}) room->assign(size_t(kState), NAN);
        h.assign(size_t(3 * kState), NAN);
        for (const int32_t port : {d.cond, d.tokens}) {
            if (port == DV_NATIVE_NONE) continue;
            constant_ports.push_back(port);
            constants.push_back(in.ports[size_t(port)].data());
        }
        s.x_port = d.x, s.row_port = d.b.row_port, s.e_port = d.eps, s.v_port = d.variance;
        v.resize(d.variance == DV_NATIVE_NONE ? 0 : size_t(batch * kCount));
        s.v = v.empty() ? nullptr : v.data();
        s.constants_count = int32_t(constants.size()), s.constant_ports = constant_ports.data(), s.constants = constants.data();
        s.steps = int32_t(kSteps), s.row_count = int32_t(row_count), s.lanes = lanes, s.samples = int32_t(kSamples);
        s.embeddings = embeddings.data(), s.rows = &rows[0].p_x, s.weights = weights.data(), s.x = x.data();
        s.e = e.data(), s.x0 = x0.data(), s.c = c.data(), s.seeds = seeds.data();
        s.x_in = x_in.data(), s.y = y.data(), s.h = h.data();
    }

    static diffusevae::Row plain_row() {
        diffusevae::Row row{};
        row.p_x = 1.1f, row.p_e = -0.4f, row.p_c = 0.1f, row.clip = 4.0f, row.c_in = 1.0f;
        row.k_x0 = 0.5f, row.k_x = 0.3f, row.k_e = 0.1f, row.k_n = 0.05f;
        return row;
    }

    // The first row leaves y and a history behind, the others read both; c_in differs from row to row.
    void use_history(float push) {
        rows[0].q_x = 0.75f, rows[0].q_e = 0.2f, rows[0].push = push, rows[0].c_in = 0.5f;
        rows[1].k_h1 = 0.2f, rows[1].p_y = 0.1f, rows[1].q_y = 0.5f, rows[1].q_n = 0.1f, rows[1].push = push;
        rows[2].k_h2 = 0.3f, rows[2].p_h1 = -0.1f, rows[2].k_y = 0.2f, rows[2].c_in = 2.0f;
    }

    static std::vector<float> drawn(Random& random, int64_t count, float most) {
        std::vector<float> values(size_t(count), 0.0f);
        for (float& v : values) v = random.uniform(-most, most);
        return values;
    }
};

// The same loop by hand, over dv_native_run and dv_update; e_0, e_1, ... are what the network answers.
std::vector<float> steps_by_hand(dv_native* handle, const Denoiser& d, StepsRun& r) {
    constexpr int64_t kState = StepsRun::kState;
    const int64_t width = d.b.ports[size_t(d.b.row_port)].channels;
    std::vector<float> history[3], y(size_t(kState), 0.0f);
    for (std::vector<float>& each : history) each.assign(size_t(kState), 0.0f);
    for (int64_t i = 0; i < StepsRun::kSteps; ++i) {
        const float* weights = r.weights.data() + i * r.s.lanes;
        const int32_t lanes = r.s.lanes == 2 && weights[1] != 0.0f ? 2 : 1;
        const int64_t batch = lanes * StepsRun::kSamples;
        const int32_t row_count = r.s.row_count == 1 ? 1 : int32_t(batch);
        Inputs in = r.in;
        in.ports[size_t(d.cond)].resize(size_t(batch * StepsRun::kCount));
        if (d.tokens != DV_NATIVE_NONE) in.ports[size_t(d.tokens)].resize(size_t(port_size(d.b.ports[size_t(d.tokens)], batch, 1, 0)));
        in.ports[size_t(d.x)].clear();
        for (int64_t at = 0; at < batch * StepsRun::kCount; ++at)
            in.ports[size_t(d.x)].push_back(r.rows[size_t(i)].c_in * r.x[size_t(at % kState)]);
        const auto first = r.embeddings.begin() + i * r.s.row_count * width;
        in.ports[size_t(d.b.row_port)].assign(first, first + row_count * width);
        const Result got = run(handle, d.b, in, batch, row_count);
        dv_update_args a{};
        a.row = &r.rows[size_t(i)].p_x;
        a.x = a.out = r.x.data();
        a.e = got.ports[size_t(d.eps)].data();
        a.weights = weights;
        a.lanes = lanes;
        a.c = r.s.c;
        a.v = d.variance == DV_NATIVE_NONE ? nullptr : got.ports[size_t(d.variance)].data();
        a.y = a.y_out = y.data();
        a.h1 = history[0].data(), a.h2 = history[1].data(), a.h3 = history[2].data();
        a.seeds = r.seeds.data();
        a.samples = StepsRun::kSamples;
        a.count = a.noise_stride = StepsRun::kCount;
        a.step = uint32_t(i);
        a.threads = 1;
        std::vector<float> pushed(size_t(kState), 0.0f);
        a.push_out = pushed.data();
        dv_update(&a);
        if (r.rows[size_t(i)].push == diffusevae::kPushNothing) continue;
        history[2].swap(history[1]);
        history[1].swap(history[0]);
        history[0].swap(pushed);
    }
    return r.x;
}

void check_loops(const char* isa, Denoiser& d, const Handle& open, const char* network = "") {
    const struct { const char* name; int32_t lanes; float push; bool row_a_sample, one_lane_last; } cases[] = {
        {"", 1, -1.0f, false, false},
        {", two lanes", 2, -1.0f, false, false},
        {", two lanes, one in the last row", 2, -1.0f, true, true},
        {", with y and past e", 1, diffusevae::kPushE, true, false},
        {", two lanes with y and past x0", 2, diffusevae::kPushX0, false, true}};
    for (const auto& c : cases) {
        const std::string name = std::string(isa) + " steps in one call are the steps by hand" + network + c.name;
        if (name.find(wanted) == std::string::npos) continue;
        StepsRun whole(d, c.lanes, c.row_a_sample), hand(d, c.lanes, c.row_a_sample);
        for (StepsRun* r : {&whole, &hand}) {
            if (c.push >= 0.0f) r->use_history(c.push);
            if (c.one_lane_last) r->weights[5] = 0.0f;
            if (d.variance != DV_NATIVE_NONE) r->rows[0].s_n = 0.7f, r->rows[2].s_n = -0.4f;
        }
        if (c.push < 0.0f) whole.s.y = whole.s.h = nullptr;
        if (c.push < 0.0f && c.lanes == 1) whole.s.x_in = nullptr;
        char error[256];
        const int32_t status = dv_native_run_steps(open.handle, &whole.s, error, sizeof error);
        const std::vector<float> want = steps_by_hand(open.handle, d, hand);
        const bool same = std::memcmp(want.data(), whole.s.x, want.size() * sizeof(float)) == 0;
        report(status == DV_NATIVE_OK && same && std::isfinite(want[0]) && whole.s.failed_step == -1, name, error);
    }
}

// Every change of a good call must be answered BAD_CALL, before anything is run.
void check_steps_refused(const char* isa, Denoiser& d, const Handle& open) {
    static int32_t twice[2];
    static const float* both[2];
    const struct { const char* name; void (*change)(StepsRun&); } changes[] = {
        {"a wrong port", [](StepsRun& r) { r.s.x_port = 77; }},
        {"a port named twice", [](StepsRun& r) { twice[0] = twice[1] = r.constant_ports[0], both[0] = both[1] = r.constants[0];
                                                 r.s.constants_count = 2, r.s.constant_ports = twice, r.s.constants = both; }},
        {"a port named by nothing", [](StepsRun& r) { r.s.constants_count = 0; }},
        {"constants that are null", [](StepsRun& r) { r.constants[0] = nullptr; }},
        {"no embeddings", [](StepsRun& r) { r.s.embeddings = nullptr; }},
        {"rows of another number", [](StepsRun& r) { r.s.row_count = 3; }},
        {"no rows", [](StepsRun& r) { r.s.steps = 0; }},
        {"no lanes", [](StepsRun& r) { r.s.lanes = 0; }},
        {"no weights", [](StepsRun& r) { r.s.weights = nullptr; }},
        {"a guide", [](StepsRun& r) { r.rows[2].k_g = 1.0f; }},
        {"no centre", [](StepsRun& r) { r.s.c = nullptr; }},
        {"no second output", [](StepsRun& r) { r.rows[1].s_n = 0.5f; }},
        {"room for a second output that there is not", [](StepsRun& r) { r.s.v = r.s.e; }},
        {"x for a second output", [](StepsRun& r) { r.s.v_port = r.s.x_port, r.s.v = r.s.e; }},
        {"no y", [](StepsRun& r) { r.rows[1].q_y = 1.0f, r.s.y = nullptr; }},
        {"no history", [](StepsRun& r) { r.rows[1].push = 1.0f, r.s.h = nullptr; }},
        {"a push of 3", [](StepsRun& r) { r.rows[1].push = 3.0f; }},
        {"no noise", [](StepsRun& r) { r.s.seeds = nullptr; }},
        {"no room for c_in", [](StepsRun& r) { r.rows[1].c_in = 0.5f, r.s.x_in = nullptr; }}};
    for (const auto& c : changes) {
        StepsRun r(d, 1, false);
        c.change(r);
        char error[256];
        const float before = r.x[0];
        const int32_t answer = dv_native_run_steps(open.handle, &r.s, error, sizeof error);
        report(answer == DV_NATIVE_BAD_CALL && r.x[0] == before, std::string(isa) + " steps with " + c.name + " are refused", error);
    }
}

void check_steps(const char* isa) {
    Denoiser d(false);
    const Handle open(d.b, isa, 2);
    check_loops(isa, d, open);
    Denoiser learned(false, 8, true);
    check_loops(isa, learned, Handle(learned.b, isa, 2), ", with a second output");
    Denoiser transformer(false, 8, false, true);
    check_loops(isa, transformer, Handle(transformer.b, isa, 2), ", with tokens");
    char error[256];
    StepsRun bad(d, 1, false);
    bad.rows[1].k_x = NAN;  // the second row's x is NaN, the third row's e tells
    int32_t status = dv_native_run_steps(open.handle, &bad.s, error, sizeof error);
    report(status == DV_NATIVE_NOT_FINITE && bad.s.failed_step == 2, std::string(isa) + " steps that are not finite are named", error);
    StepsRun stopped(d, 1, false), two(d, 1, false);
    int32_t asked = 0;
    stopped.s.stop = [](void* user) { return int32_t(++*static_cast<int32_t*>(user) == 3); };
    stopped.s.stop_user = &asked;
    status = dv_native_run_steps(open.handle, &stopped.s, error, sizeof error);
    two.s.steps = 2;
    const bool same = dv_native_run_steps(open.handle, &two.s, error, sizeof error) == DV_NATIVE_OK && two.x == stopped.x;
    report(status == DV_NATIVE_CANCELLED && asked == 3 && same && stopped.s.failed_step == 2,
           std::string(isa) + " steps end before the row that stop refuses", error);
    StepsRun whole(d, 2, true), sliced(d, 2, true);
    for (StepsRun* r : {&whole, &sliced}) r->use_history(diffusevae::kPushX0);
    sliced.s.slice.ms = 1e-6;  // over at every look
    int32_t slices = 1;
    for (; (status = dv_native_run_steps(open.handle, &sliced.s, error, sizeof error)) == DV_NATIVE_PAUSED; ++slices) continue;
    const bool whole_is_good = dv_native_run_steps(open.handle, &whole.s, error, sizeof error) == DV_NATIVE_OK;
    report(whole_is_good && status == DV_NATIVE_OK && slices >= sliced.s.steps && sliced.x == whole.x,
           std::string(isa) + " steps in slices are the steps in one", error);
    check_steps_refused(isa, d, open);
}

#if !defined(__SANITIZE_THREAD__)
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
#endif

std::set<pid_t> threads_of_this_process() {
    std::set<pid_t> found;
    DIR* folder = opendir("/proc/self/task");
    while (const dirent* entry = readdir(folder))
        if (entry->d_name[0] != '.') found.insert(pid_t(std::atoi(entry->d_name)));
    closedir(folder);
    return found;
}

std::atomic<bool> put_aside{false}, let_go{false}, waited{false};

// What the system does to a thread when it gives its processor away; `waited` where half a minute was not enough, which
// a run under thread sanitizer beside others needs seconds of.
void stay_aside(int) {
    put_aside = true;
    for (int rounds = 0; !let_go && !(waited = rounds == 30000); ++rounds) usleep(1000);
}

// A run ends while a thread of its team is put aside, and what that one finds when it comes back is no longer its own.
void check_put_aside(const char* isa) {
    Denoiser d(true);
    const std::set<pid_t> before = threads_of_this_process();
    const Handle open(d.b, isa, 2);
    const Inputs in[2] = {draw_inputs(d.b, 1, 1, 0), draw_inputs(d.b, 2, 1, 0)};  // inside the operations, and side by side
    const auto answers = [&] {
        return std::make_pair(run(open.handle, d.b, in[0], 1, 1).ports, run(open.handle, d.b, in[1], 2, 1).ports);
    };
    const auto want = answers();
    std::signal(SIGUSR1, stay_aside);
    put_aside = let_go = waited = false;
    const std::set<pid_t> now = threads_of_this_process();
    for (int rounds = 0; !put_aside && rounds < 5000; ++rounds) {
        for (const pid_t thread : now)  // again and again: thread sanitizer may keep a signal back until the next one
            if (before.count(thread) == 0 && rounds % 100 == 0) syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
        usleep(1000);
    }
    const bool aside = put_aside;
    bool same = answers() == want;
    const bool in_time = !waited;
    let_go = true;
    for (int rounds = 0; rounds < 20; ++rounds) same = same && answers() == want;
    const char* const what = !aside ? "none was put aside" : !in_time ? "waited" : !same ? "other bits" : "";
    report(aside && in_time && same, std::string(isa) + " a thread that is put aside is not waited for", what);
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
#if !defined(__SANITIZE_THREAD__)  // whose children start no threads
    report(fork_is_survived(open.handle, d, in), std::string(isa) + " a forked child is told, and clones", "");
#endif
    char error[256];
    dv_native* none = nullptr;
    const int32_t status = dv_native_open(&d.b.program(), isa, 0, &none, error, sizeof error);
    report(status == DV_NATIVE_BAD_CALL && none == nullptr, std::string(isa) + " no threads are refused", error);
    const Result few = run(open.handle, d.b, in, 0, 1);
    report(few.status == DV_NATIVE_BAD_CALL, std::string(isa) + " an empty batch is refused", few.error);
    const Handle many(d.b, isa, 37);
    report(run(many.handle, d.b, in, 2, 1).ports[size_t(d.eps)] == want.ports[size_t(d.eps)],
           std::string(isa) + " more threads than work", "");
    check_put_aside(isa);
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_RUNS_H
