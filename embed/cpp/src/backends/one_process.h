// The rules of fork(): threads and devices stay with the process that first used them. As engine/forks.py has them.
#ifndef DIFFUSEVAE_BACKENDS_ONE_PROCESS_H
#define DIFFUSEVAE_BACKENDS_ONE_PROCESS_H

#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "error.h"

namespace diffusevae {

// A runtime with state of its whole process, which a child of fork() has no working copy of, nor can make again.
class OneProcess {
public:
    explicit OneProcess(const char* name) : name_(name) {}

    // Whether a process uses it that this one was forked from.
    bool elsewhere() const {
        const pid_t process = process_.load();
        return process != 0 && process != getpid();
    }

    // Throws Error (BACKEND) where it is elsewhere.
    void check() const {
        if (!elsewhere()) return;
        throw Error(DIFFUSEVAE_BACKEND,
                    std::string(name_) + ": found that it was opened by the parent of this process, whose threads and devices "
                    "a fork() leaves behind; expected one of this process; open the bundle here with backend native, or fork "
                    "before " + name_ + " is first used");
    }

    // From now on this process uses it: later children are refused.
    void enter() {
        check();
        process_ = getpid();
    }

private:
    const char* name_;
    std::atomic<pid_t> process_{0};
};

// Deletes in the process that made it only: in a child of fork() that would wait for threads that are not there.
template <class T>
struct LeftToParent {
    LeftToParent() = default;
    void operator()(T* held) const {
        if (process == getpid()) delete held;
    }
    pid_t process = getpid();
};

template <class T>
using Own = std::unique_ptr<T, LeftToParent<T>>;

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_ONE_PROCESS_H
