// The team of threads that works off a job stage by stage. A stage is cut into small pieces that are taken by whoever runs:
// no thread waits for one that has not begun a piece, so the system may put any of them aside between two.
#ifndef DIFFUSEVAE_NATIVE_TEAM_H
#define DIFFUSEVAE_NATIVE_TEAM_H

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace diffusevae {
namespace native {

// Piece `piece` of `pieces` of the share of a thread, taken by `thread`: that one, or another which had nothing left.
struct Piece {
    int32_t stage, share, piece, pieces, thread;
    uint64_t number;                // of the stage, among all stages of all jobs
};

// Stages in order, each begun when the one before it is over. Nothing here throws.
class Job {
public:
    virtual int32_t pieces(int32_t stage) = 0;   // of each share: 1 .. Team::kMostPieces
    virtual void run(const Piece& piece) = 0;    // concurrent with other pieces of its stage
    virtual void over(int32_t stage) = 0;        // once a stage, when nothing runs
protected:
    ~Job() = default;
};

class Team {
public:
    static constexpr int32_t kMostPieces = 4096;

    // The caller is the first of `threads`. A thread calls `enter` before its first piece, and `leave` before it rests.
    // std::system_error where the system grants no more threads.
    Team(int32_t threads, void (*enter)(), void (*leave)());
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int32_t size() const { return size_; }

    // Runs all stages (at least one); returns when the last is over.
    void run(Job& job, int32_t stages);

private:
    using Clock = std::chrono::steady_clock;
    // A number and a count in one word: of `open_` the stage and its pieces a share (0: no stage is open), of a Share the
    // stage that took from it last and the next piece. Both only grow, so that a thread which comes late finds its
    // stage over, and a word that it has read never comes back.
    static constexpr int kCountBits = 16;
    static constexpr uint64_t kCount = (uint64_t(1) << kCountBits) - 1;
    struct alignas(64) Share {
        std::atomic<uint64_t> taken{0};
    };

    // What a thread carries from stage to stage.
    struct Turn {
        int32_t thread;
        bool entered = false;
        Clock::time_point offered = Clock::now(), seen = offered;  // the processor; the thread, by itself
    };

    void work(int32_t thread);
    void take_all(uint64_t open, Turn& turn);
    void offer(Turn& turn, uint64_t open, int32_t& done);
    int32_t claim(Share& share, uint64_t open);
    void finish(uint64_t open, int32_t pieces);
    void publish(uint64_t open);
    void open(uint64_t number);
    void wait(uint64_t open, Turn& turn);
    void stop();

    int32_t size_;
    void (*enter_)();
    void (*leave_)();
    Job* job_ = nullptr;            // these three are read only by who holds a piece: then they cannot change
    uint64_t first_ = 0;            // number of the job's first stage
    int32_t stages_ = 0;
    std::vector<Share> shares_;
    alignas(64) std::atomic<uint64_t> open_{0};
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<int64_t> left_{0};  // pieces of the stage that are not done
    alignas(64) std::atomic<int32_t> sleeping_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> threads_;
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_TEAM_H
