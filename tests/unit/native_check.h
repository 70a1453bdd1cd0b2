// A native program run and compared in a test: handles, drawn inputs, reports.
#ifndef DIFFUSEVAE_TESTS_NATIVE_CHECK_H
#define DIFFUSEVAE_TESTS_NATIVE_CHECK_H

#include <sys/resource.h>

#include <cstdio>
#include <string>

#include "native_gradient_reference.h"
#include "native_program.h"

namespace {

struct Result {
    int32_t status;
    std::string error;
    std::vector<std::vector<float>> ports;
};

struct Inputs {
    std::vector<std::vector<float>> ports;
    std::vector<int64_t> timesteps;
};

constexpr int32_t kIds = 10;  // drawn ids are below

int passed = 0, failed = 0;
const char* wanted = "";

void report(bool good, const std::string& name, const std::string& more) {
    (good ? passed : failed) += 1;
    std::printf("%s %s%s%s\n", good ? "ok    " : "FAILED", name.c_str(), more.empty() ? "" : ": ", more.c_str());
    std::fflush(stdout);
}

struct Size { int32_t height, width; };

std::string named(const std::string& what, int32_t channels, int32_t outputs, const Size& s) {
    return what + " " + std::to_string(channels) + "->" + std::to_string(outputs) + " at " + std::to_string(s.height) + "x"
           + std::to_string(s.width);
}

int64_t port_size(const dv_native_port& p, int64_t batch, int64_t rows, int64_t steps) {
    const bool of_batch = p.kind == DV_NATIVE_PORT_MAP || p.kind == DV_NATIVE_PORT_TOKENS || p.kind == DV_NATIVE_PORT_IDS;
    if (of_batch) return batch * p.channels * p.height * p.width;
    if (p.kind == DV_NATIVE_PORT_ROW) return rows * p.channels;
    const int64_t count = p.rows == DV_NATIVE_ROWS_STEPS ? steps : p.rows == DV_NATIVE_ROWS_BATCH ? batch : steps * batch;
    return count * p.channels;
}

Inputs draw_inputs(const Builder& b, int64_t batch, int32_t rows, int64_t steps) {
    Random random(99);
    Inputs in;
    in.ports.resize(b.ports.size());
    for (size_t p = 0; p < b.ports.size(); ++p)
        if (b.ports[p].is_output == 0 && b.ports[p].kind != DV_NATIVE_PORT_STEPS) {
            in.ports[p].resize(size_t(port_size(b.ports[p], batch, rows, steps)));
            for (float& v : in.ports[p])
                v = b.ports[p].kind == DV_NATIVE_PORT_IDS ? float(random.below(kIds)) : random.uniform(-2.0f, 2.0f);
        }
    for (int64_t s = 0; s < steps; ++s) in.timesteps.push_back(random.below(10));
    return in;
}

int32_t rows_of(const Builder& b, bool shared, int64_t batch) {
    return b.row_port == DV_NATIVE_NONE ? 0 : shared ? 1 : int32_t(batch);
}

// Runs an open handle on `in`; output ports are filled with NaN before.
Result run(dv_native* handle, const Builder& b, Inputs in, int64_t batch, int32_t rows) {
    char error[256];
    Result result{0, "", std::move(in.ports)};
    std::vector<void*> pointers;
    std::vector<std::vector<int64_t>> ids(b.ports.size());  // inputs hold them as whole floats
    const bool steps = std::any_of(b.ports.begin(), b.ports.end(), [](const dv_native_port& p) { return p.kind == DV_NATIVE_PORT_STEPS; });
    const int64_t count = steps ? int64_t(in.timesteps.size()) : 0;
    for (size_t p = 0; p < b.ports.size(); ++p) {
        if (b.ports[p].is_output == 1) result.ports[p].assign(size_t(port_size(b.ports[p], batch, rows, count)), NAN);
        const int32_t kind = b.ports[p].kind;
        if (kind == DV_NATIVE_PORT_IDS && b.ports[p].is_output == 0) ids[p].assign(result.ports[p].begin(), result.ports[p].end());
        pointers.push_back(kind == DV_NATIVE_PORT_STEPS ? static_cast<void*>(in.timesteps.data())
                           : !ids[p].empty()            ? static_cast<void*>(ids[p].data())
                                                        : result.ports[p].data());
    }
    dv_native_call call{pointers.data(), int32_t(pointers.size()), rows, batch, count, {}};
    result.status = dv_native_run(handle, &call, error, sizeof error);
    result.error = error;
    return result;
}

class Handle {
public:
    Handle(Builder& b, const char* isa, int32_t threads) {
        char error[256];
        status = dv_native_open(&b.program(), isa, threads, &handle, error, sizeof error);
        text = error;
    }
    ~Handle() { dv_native_close(handle); }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    dv_native* handle = nullptr;
    int32_t status;
    std::string text;
};

// The largest deviation of any output port from the reference, relative to the port's largest value.
double deviation(const Builder& b, const Result& got, const std::vector<std::vector<float>>& want) {
    double worst = 0.0;
    for (size_t p = 0; p < b.ports.size(); ++p) {
        if (b.ports[p].is_output == 0) continue;
        double most = 1e-3, off = 0.0;
        for (size_t i = 0; i < want[p].size(); ++i) {
            most = std::max(most, std::fabs(double(want[p][i])));
            const double d = std::fabs(double(got.ports[p][i]) - double(want[p][i]));
            off = d <= off ? off : d;  // NaN counts
        }
        worst = off / most <= worst ? worst : off / most;
    }
    return worst;
}

// The bits of sample 0 in any batch, on any threads.
void check_bits(const char* isa, const std::string& name, Builder& b) {
    const std::string full = std::string(isa) + " " + name;
    if (full.find(wanted) == std::string::npos) return;
    constexpr int64_t kMost = 3;
    const int32_t rows = rows_of(b, true, kMost);
    const auto of_a_sample = [&](size_t p) { return int32_t(p) != b.row_port; };
    const Inputs all = draw_inputs(b, kMost, rows, 0);
    std::vector<std::vector<float>> want;
    bool good = true;
    for (int32_t threads : {1, 2, 5})
        for (int64_t batch : {int64_t(1), kMost}) {
            const Handle open(b, isa, threads);
            if (open.status != DV_NATIVE_OK) return report(false, full, open.text);
            Inputs some = all;
            for (size_t p = 0; p < b.ports.size(); ++p)
                if (of_a_sample(p)) some.ports[p].resize(some.ports[p].size() / kMost * size_t(batch));
            Result got = run(open.handle, b, some, batch, rows);
            for (size_t p = 0; p < b.ports.size(); ++p)
                if (of_a_sample(p)) got.ports[p].resize(got.ports[p].size() / size_t(batch));
            if (want.empty()) want = got.ports;
            for (size_t p = 0; p < b.ports.size(); ++p)
                good = good && std::memcmp(got.ports[p].data(), want[p].data(), want[p].size() * sizeof(float)) == 0;
            good = good && got.status == DV_NATIVE_OK;
        }
    report(good, full, "");
}

// The most memory that this process ever had, in KiB.
int64_t peak_kib() {
    rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_maxrss;
}

void check(const char* isa, const std::string& name, Builder& b, double bound, int64_t batch = 2, bool shared_row = false,
           int64_t steps = 0) {
    const std::string full = std::string(isa) + " " + name;
    if (full.find(wanted) == std::string::npos) return;
    const int32_t rows = rows_of(b, shared_row, batch);
    const Inputs in = draw_inputs(b, batch, rows, steps);
    for (int32_t threads : {1, 3}) {
        const Handle open(b, isa, threads);
        if (open.status != DV_NATIVE_OK) return report(false, full, open.text);
        const Result got = run(open.handle, b, in, batch, rows);
        if (got.status != DV_NATIVE_OK) return report(false, full, got.error);
        reference::WholeMachine machine(b.program(), in.ports, in.timesteps, batch, rows);
        const double off = deviation(b, got, machine.run());
        if (!(off <= bound) || threads == 3)
            return report(off <= bound, full, "deviation " + std::to_string(off) + " of at most " + std::to_string(bound));
    }
}

}  // namespace

#endif  // DIFFUSEVAE_TESTS_NATIVE_CHECK_H
