// How the team takes pieces, and how it waits: a short spin, then sleep.
//
// A thread that shares its processor is put aside sooner or later, in the middle of a piece most likely, and then all others
// wait for it. So it offers the processor between two pieces, before the system takes it. Who waits must not yield: that gives
// a whole slice away (Linux 6.18), where sleep keeps the claim to it and leaves a processor free for the thread put aside.
// CIFAR-10 beside one busy process, two processors: 2.4 times the time alone with shares and barriers, 1.6 so.
#include "team.h"

#include <sched.h>

namespace diffusevae {
namespace native {
namespace {

using std::chrono::microseconds;

constexpr microseconds kSpin(150);   // before sleep: longer than a piece, or the time between two steps
constexpr int kPauses = 20;          // between two looks at the clock
constexpr microseconds kOffer(2000); // from one offer to the next: less than a slice of the system's
constexpr microseconds kAway(700);   // a piece that took so long was interrupted

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

Team::Team(int32_t threads, void (*enter)(), void (*leave)())
    : size_(threads), enter_(enter), leave_(leave), shares_(size_t(threads)) {
    threads_.reserve(size_t(threads - 1));
    try {
        for (int32_t thread = 1; thread < threads; ++thread) threads_.emplace_back([this, thread] { work(thread); });
    } catch (...) {
        stop();
        throw;
    }
}

Team::~Team() { stop(); }

void Team::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void Team::run(Job& job, int32_t stages) {
    job_ = &job;
    stages_ = stages;
    first_ = (open_.load(std::memory_order_relaxed) >> kCountBits) + 1;
    const uint64_t end = (first_ + uint64_t(stages)) << kCountBits;
    Turn turn{0};
    open(first_);
    for (uint64_t now; (now = open_.load(std::memory_order_acquire)) != end;) {
        take_all(now, turn);
        wait(now, turn);
    }
    if (turn.entered) leave_();
}

void Team::work(int32_t thread) {
    Turn turn{thread};
    while (!stopping_.load(std::memory_order_relaxed)) {
        const uint64_t now = open_.load(std::memory_order_acquire);
        take_all(now, turn);
        wait(now, turn);
    }
    if (turn.entered) leave_();
}

// Takes pieces as long as there are any: of its own share first, whose operands and weights lie in its cache.
void Team::take_all(uint64_t open, Turn& turn) {
    const uint64_t number = open >> kCountBits;
    int32_t done = 0;
    for (int32_t i = 0; i < size_; ++i) {
        const int32_t share = (turn.thread + i) % size_;
        for (int32_t piece; (piece = claim(shares_[size_t(share)], open)) >= 0;) {
            if (!turn.entered) enter_();
            turn.entered = true;
            job_->run(Piece{int32_t(number - first_), share, piece, int32_t(open & kCount), turn.thread, number});
            ++done;
            if (size_ > 1) offer(turn, open, done);
        }
    }
    finish(open, done);
}

// Lets another process have the processor, once in a while and with nothing begun.
void Team::offer(Turn& turn, uint64_t open, int32_t& done) {
    const Clock::time_point now = Clock::now();
    if (now - turn.seen > kAway) turn.offered = now;  // the system has just let it in again
    turn.seen = now;
    if (now - turn.offered < kOffer) return;
    finish(open, done);
    done = 0;
    sched_yield();
    turn.offered = turn.seen = Clock::now();
}

// The next piece of a share, or -1. Once a stage is over every share bears its number (or a later one) with all pieces taken.
int32_t Team::claim(Share& share, uint64_t open) {
    uint64_t taken = share.taken.load(std::memory_order_relaxed);
    for (;;) {
        const uint64_t stage = taken >> kCountBits, ours = open >> kCountBits;
        if (stage > ours) return -1;
        const uint64_t piece = stage == ours ? taken & kCount : 0;
        if (piece >= (open & kCount)) return -1;
        const uint64_t next = (ours << kCountBits) | (piece + 1);
        if (share.taken.compare_exchange_weak(taken, next, std::memory_order_relaxed)) return int32_t(piece);
    }
}

// Pieces are done; the last of a stage opens the next, or none.
void Team::finish(uint64_t now, int32_t pieces) {
    if (pieces == 0 || left_.fetch_sub(pieces, std::memory_order_acq_rel) != pieces) return;
    const uint64_t number = now >> kCountBits;
    job_->over(int32_t(number - first_));
    open(number + 1);
}

void Team::open(uint64_t number) {
    const uint64_t stage = number - first_;
    const bool ends = stage == uint64_t(stages_);
    const uint64_t pieces = ends ? 0 : uint64_t(job_->pieces(int32_t(stage)));
    left_.store(int64_t(pieces) * size_, std::memory_order_relaxed);
    publish((number << kCountBits) | pieces);  // after the last, the job may be gone
}

void Team::publish(uint64_t open) {
    open_.store(open);  // sequentially consistent, like sleeping_: one of the two threads sees the other's
    if (sleeping_.load() == 0) return;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        sleeping_.store(0);
    }
    wake_.notify_all();
}

// Until another stage is open than `open`, or the team ends.
void Team::wait(uint64_t open, Turn& turn) {
    const auto changed = [&] { return open_.load(std::memory_order_acquire) != open; };
    const Clock::time_point until = Clock::now() + kSpin;
    do
        for (int pauses = 0; pauses < kPauses; ++pauses) {
            if (changed()) return;
            pause();
        }
    while (Clock::now() < until);
    if (turn.entered) leave_();
    turn.entered = false;
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_.load()) {
        sleeping_.store(1);
        if (open_.load() != open) return;
        wake_.wait(lock);
    }
}

}  // namespace native
}  // namespace diffusevae
