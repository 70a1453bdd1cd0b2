// The team of threads that runs one function, meets at barriers, and sleeps when there is nothing to do.
#ifndef DIFFUSEVAE_NATIVE_TEAM_H
#define DIFFUSEVAE_NATIVE_TEAM_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace diffusevae {
namespace native {

class Team {
public:
    // The caller is the first of `threads`. std::system_error where the system grants no more.
    explicit Team(int32_t threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int32_t size() const { return size_; }

    // Runs job(part) for every part 0 .. size - 1, each in its thread; returns when all have. The job does not throw.
    template <class Job>
    void run(Job& job) {
        start([](void* self, int32_t part) { (*static_cast<Job*>(self))(part); }, &job);
    }

    // Called by every part of a running job: none goes on before all have come.
    void barrier();

private:
    using Function = void (*)(void*, int32_t);
    void start(Function function, void* self);
    void work(int32_t part);
    bool wait_for_job(uint64_t seen);
    void stop();

    int32_t size_;
    Function function_ = nullptr;
    void* self_ = nullptr;
    alignas(64) std::atomic<uint64_t> generation_{0};
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<int32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    alignas(64) std::atomic<int32_t> finished_{0};
    std::atomic<int32_t> sleeping_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_TEAM_H
