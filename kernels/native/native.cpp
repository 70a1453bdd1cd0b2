// The C interface: handles, and the place where every exception ends.
#include "diffusevae/native.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <new>
#include <system_error>

#include "ceiling.h"
#include "interpreter.h"
#include "isa.h"
#include "loop.h"

namespace native = diffusevae::native;
using native::demand;
using native::Failure;

struct dv_native {
    dv_native(std::shared_ptr<const native::Layout> layout, int32_t threads) : interpreter(std::move(layout), threads) {}
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
        *handle = new dv_native(native::make_layout(native::checked(*program), kernels), count);
    });
}

int32_t dv_native_clone(const dv_native* handle, int32_t threads, dv_native** clone, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        demand(handle && clone, "a pointer is null");
        *clone = nullptr;
        *clone = new dv_native(handle->interpreter.shared_layout(), checked_threads(threads));
    });
}

void dv_native_close(dv_native* handle) {
    // A forked child cannot join threads that it does not have: its copy is left to the end of the process.
    if (handle && handle->process == getpid()) delete handle;
}

int32_t dv_native_run(dv_native* handle, dv_native_call* call, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const Entered entered(handle);
        demand(call != nullptr, "the call is null");
        native::Watch watch(call->slice);
        handle->interpreter.run(*call, watch);
    });
}

int32_t dv_native_run_steps(dv_native* handle, dv_native_steps* steps, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const Entered entered(handle);
        demand(steps != nullptr, "the steps are null");
        native::run_steps(handle->interpreter, *steps);
    });
}

void dv_native_describe(const dv_native* handle, dv_native_info* info) {
    const native::Interpreter& i = handle->interpreter;
    *info = dv_native_info{i.layout().kernels->name, i.threads(), i.batch_tile(), i.bytes(), i.layout().program.weights_size};
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
