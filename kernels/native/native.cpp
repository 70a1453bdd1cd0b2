// What stands behind the C interface? Handles, the sampler's loop, and the place where every exception ends.
#include "diffusevae/native.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>

#include "ceiling.h"
#include "interpreter.h"
#include "isa.h"

namespace native = diffusevae::native;
using native::Failure;

struct dv_native {
    dv_native(std::shared_ptr<const native::Plan> plan, int32_t threads) : interpreter(std::move(plan), threads) {}
    native::Interpreter interpreter;
    const pid_t process = getpid();
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

namespace {

void say(const char* text, char* to, size_t size) {
    if (to && size > 0) std::snprintf(to, size, "%s", text);
}

// Runs `body`; whatever it throws becomes a status and a sentence.
template <class Body>
int32_t guarded(char* error, size_t size, const Body& body) {
    say("", error, size);
    try {
        body();
        return DV_NATIVE_OK;
    } catch (const Failure& failure) {
        say(failure.what(), error, size);
        return failure.status();
    } catch (const std::bad_alloc&) {
        say("no memory is left", error, size);
        return DV_NATIVE_NO_MEMORY;
    } catch (const std::system_error& failure) {
        say((std::string("the system grants no more threads: ") + failure.what()).c_str(), error, size);
        return DV_NATIVE_NO_THREADS;
    } catch (const std::exception& failure) {
        say(failure.what(), error, size);
        return DV_NATIVE_BAD_PROGRAM;
    }
}

void demand(bool good, const char* what) {
    if (!good) throw Failure(DV_NATIVE_BAD_CALL, what);
}

int32_t checked_threads(int32_t threads) {
    if (threads < 1 || threads > DV_NATIVE_MAX_THREADS)
        throw Failure(DV_NATIVE_BAD_CALL, "threads is " + std::to_string(threads) + ", expected 1.."
                                              + std::to_string(DV_NATIVE_MAX_THREADS));
    return threads;
}

const native::Kernels* chosen_kernels(const char* isa) {
    std::string why;
    const native::Kernels* kernels = isa ? native::kernels_of(isa, why) : native::best_kernels(why);
    if (!kernels) throw Failure(DV_NATIVE_UNSUPPORTED, std::string(isa ? isa : "native kernels") + " cannot run here: " + why);
    return kernels;
}

// Holds a handle for one caller; refuses a second, and a forked child, whose copy has no threads.
class Entered {
public:
    explicit Entered(dv_native* handle) : handle_(handle) {
        demand(handle != nullptr, "the handle is null");
        if (handle->process != getpid())
            throw Failure(DV_NATIVE_FORKED, "this handle was opened by the parent process and its threads stayed there; "
                                            "clone it in this process");
        if (handle->busy.test_and_set(std::memory_order_acquire)) {
            handle_ = nullptr;
            throw Failure(DV_NATIVE_BUSY, "another thread is inside this handle; give each thread its own clone");
        }
    }
    ~Entered() {
        if (handle_) handle_->busy.clear(std::memory_order_release);
    }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

private:
    dv_native* handle_;
};

double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int64_t kRowFields = 10, kPrevField = 4;  // struct Row of row.h

// The sampler's loop over one program; see dv_native_steps.
class Steps {
public:
    Steps(native::Interpreter& interpreter, dv_native_steps& steps) : i_(interpreter), s_(steps) {
        const native::Program& p = i_.plan().program;
        demand(s_.steps >= 1 && s_.samples >= 1, "steps and samples: expected 1 or more");
        demand(s_.lanes == s_.samples || s_.lanes == 2 * s_.samples, "lanes: expected samples or twice as many");
        demand(s_.row_count == 1 || s_.row_count == s_.lanes, "row_count: expected 1 or lanes");
        demand(s_.x && s_.eps && s_.coefficients, "x, eps and coefficients: expected no null pointer");
        const dv_native_port& x = map_port(p, s_.x_port, 0);
        same_shape(x, map_port(p, s_.eps_port, 1));
        if (s_.cond_port != DV_NATIVE_NONE) same_shape(x, map_port(p, s_.cond_port, 0));
        demand((s_.cond_port != DV_NATIVE_NONE) == (s_.cond != nullptr), "cond: expected where there is a cond_port");
        demand(s_.row_port == p.row_port && (s_.row_port != DV_NATIVE_NONE) == (s_.rows != nullptr),
               "row_port: expected the program's own, with rows where there is one");
        const size_t used = 2 + (s_.cond_port != DV_NATIVE_NONE) + (s_.row_port != DV_NATIVE_NONE);
        demand(p.ports.size() == used && s_.cond_port != s_.x_port, "ports: expected each port of the program named once");
        count_ = int64_t(x.channels) * x.height * x.width;
        row_width_ = s_.row_port == DV_NATIVE_NONE ? 0 : p.port(s_.row_port).channels;
        for (int64_t step = 0; !s_.x0 && step < s_.steps; ++step)
            demand(coefficients(step)[kPrevField] == 0.0f, "x0: expected buffers where a row has k_prev");
        s_.failed_step = -1;
        if (s_.update_ms) *s_.update_ms = 0.0;
    }

    void run() {
        for (int64_t step = 0; step < s_.steps; ++step) {
            const double begin = now_ms();
            evaluate(step);
            const double answered = now_ms();
            const bool finite = update(step);
            if (s_.step_ms) s_.step_ms[step] = answered - begin;
            if (s_.update_ms) *s_.update_ms += now_ms() - answered;
            if (finite) continue;
            s_.failed_step = int32_t(step);
            throw Failure(DV_NATIVE_NOT_FINITE, "NaN or infinity at step " + std::to_string(step));
        }
    }

private:
    static const dv_native_port& map_port(const native::Program& p, int32_t number, int32_t is_output) {
        demand(number >= 0 && size_t(number) < p.ports.size(), "port numbers: expected ports of the program");
        const dv_native_port& port = p.port(number);
        demand(port.kind == DV_NATIVE_PORT_MAP && port.is_output == is_output, "ports: expected maps, eps alone an output");
        return port;
    }

    static void same_shape(const dv_native_port& a, const dv_native_port& b) {
        demand(a.channels == b.channels && a.height == b.height && a.width == b.width, "x, cond, eps: expected one shape");
    }

    const float* coefficients(int64_t step) const { return s_.coefficients + step * kRowFields; }

    void evaluate(int64_t step) {
        const int64_t state = s_.samples * count_;
        if (s_.lanes > s_.samples) std::memcpy(s_.x + state, s_.x, size_t(state) * sizeof(float));
        void* ports[4] = {};
        ports[s_.x_port] = s_.x;
        ports[s_.eps_port] = s_.eps;
        if (s_.cond_port != DV_NATIVE_NONE) ports[s_.cond_port] = const_cast<float*>(s_.cond);
        if (s_.row_port != DV_NATIVE_NONE) ports[s_.row_port] = const_cast<float*>(s_.rows + step * s_.row_count * row_width_);
        const int32_t row_count = s_.row_port == DV_NATIVE_NONE ? 0 : s_.row_count;
        i_.run(dv_native_call{ports, int32_t(i_.plan().program.ports.size()), row_count, s_.lanes, 0});
    }

    bool update(int64_t step) {
        const int64_t state = s_.samples * count_;
        const bool previous = coefficients(step)[kPrevField] != 0.0f;
        dv_update_args a{};
        a.row = coefficients(step);
        a.x = a.out = s_.x;
        a.eps = s_.eps;
        a.eps_uncond = s_.lanes > s_.samples ? s_.eps + state : nullptr;
        a.cond = s_.cond;
        a.x0_out = s_.x0 ? s_.x0 + step % 2 * state : nullptr;
        a.x0_prev = previous ? s_.x0 + (step + 1) % 2 * state : nullptr;
        a.noise = s_.noise ? s_.noise + step * (s_.noise_shared ? count_ : state) : nullptr;
        a.noise_stride = s_.noise_shared ? 0 : count_;
        a.seeds = s_.noise ? nullptr : s_.seeds;
        a.samples = s_.samples;
        a.count = count_;
        a.step = uint32_t(s_.first_step + step);
        a.guidance = s_.guidance;
        a.threads = i_.threads();
        return dv_update(&a) == 1;
    }

    native::Interpreter& i_;
    dv_native_steps& s_;
    int64_t count_, row_width_;
};

}  // namespace

extern "C" {

int32_t dv_native_version(void) { return DV_NATIVE_VERSION; }

const char* dv_native_isa(void) {
    std::string why;
    const native::Kernels* kernels = native::best_kernels(why);
    return kernels ? kernels->name : "";
}

int32_t dv_native_supports(const char* isa, char* why, size_t why_size) {
    return guarded(why, why_size, [&] {
               demand(isa != nullptr, "isa is null");
               chosen_kernels(isa);
           }) == DV_NATIVE_OK ? 1 : 0;
}

int32_t dv_native_open(const dv_native_program* program, const char* isa, int32_t threads, dv_native** handle, char* error,
                       size_t error_size) {
    return guarded(error, error_size, [&] {
        demand(program && handle, "a pointer is null");
        *handle = nullptr;
        const int32_t count = checked_threads(threads);
        const native::Kernels* kernels = chosen_kernels(isa);
        *handle = new dv_native(native::make_plan(native::checked(*program), kernels), count);
    });
}

int32_t dv_native_clone(const dv_native* handle, int32_t threads, dv_native** clone, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        demand(handle && clone, "a pointer is null");
        *clone = nullptr;
        *clone = new dv_native(handle->interpreter.shared_plan(), checked_threads(threads));
    });
}

void dv_native_close(dv_native* handle) {
    // A forked child cannot join threads that it does not have: its copy is left to the end of the process.
    if (handle && handle->process == getpid()) delete handle;
}

int32_t dv_native_run(dv_native* handle, const dv_native_call* call, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const Entered entered(handle);
        demand(call != nullptr, "the call is null");
        handle->interpreter.run(*call);
    });
}

int32_t dv_native_run_steps(dv_native* handle, dv_native_steps* steps, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const Entered entered(handle);
        demand(steps != nullptr, "the steps are null");
        Steps(handle->interpreter, *steps).run();
    });
}

void dv_native_describe(const dv_native* handle, dv_native_info* info) {
    const native::Interpreter& i = handle->interpreter;
    *info = dv_native_info{i.plan().kernels->name, i.threads(), i.batch_tile(), i.bytes(), i.plan().program.weights_size};
}

int32_t dv_native_profile(dv_native* handle, int32_t on) {
    return guarded(nullptr, 0, [&] {
        const Entered entered(handle);
        handle->interpreter.profile(on != 0);
    });
}

int32_t dv_native_timings(const dv_native* handle, dv_native_timing* timings, int32_t count) {
    const auto& all = handle->interpreter.timings();
    std::copy_n(all.begin(), std::min<size_t>(all.size(), size_t(std::max(count, 0))), timings);
    return int32_t(all.size());
}

int32_t dv_native_ceiling(const char* what, const char* isa, int32_t threads, double seconds, double* result, char* error,
                          size_t error_size) {
    return guarded(error, error_size, [&] {
        demand(what && result, "a pointer is null");
        demand(seconds > 0.0 && seconds <= 60.0, "seconds: expected 0..60");
        *result = native::measure_ceiling(what, chosen_kernels(isa), checked_threads(threads), seconds);
    });
}

}  // extern "C"
