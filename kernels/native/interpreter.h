// Running a program: tiles of samples through the operations, by a team of threads over one arena.
#ifndef DIFFUSEVAE_NATIVE_INTERPRETER_H
#define DIFFUSEVAE_NATIVE_INTERPRETER_H

#include <memory>
#include <vector>

#include "memory.h"
#include "layout.h"
#include "team.h"
#include "watch.h"

namespace diffusevae {
namespace native {

// How a batch is worked off: `each` samples a thread side by side, from the first operation to the last; a rest smaller than the
// team is cut inside the operations, up to `split` samples at a time.
struct Tiling {
    int32_t each, split;
    int32_t samples(int32_t threads) const { return each * threads > split ? each * threads : split; }
};

class Interpreter {
public:
    Interpreter(std::shared_ptr<const Layout> layout, int32_t threads);

    // Throws Failure for a bad call, and what `watch` throws between two tiles; goes on from watch.slice().samples.
    void run(const dv_native_call& call, Watch& watch);

    void profile(bool on);
    const std::vector<dv_native_timing>& timings() const { return timings_; }
    const Layout& layout() const { return *layout_; }
    const std::shared_ptr<const Layout>& shared_layout() const { return layout_; }
    int32_t threads() const { return team_.size(); }
    int32_t batch_tile() const { return tiling_.samples(threads()); }
    int64_t bytes() const { return memory_.bytes(); }

private:
    // One pass of an operation, its last or one that prepares that; `pieces` of each thread's share.
    struct Stage {
        size_t operation;
        int32_t pass;
        bool last;
        int32_t pieces;
    };
    // What a thread's private floats hold, and of which stage.
    struct alignas(64) Held {
        uint64_t stage = 0;
        int64_t what = -1;
    };
    class SideBySide;
    class Split;
    class RowsJob;

    void check(const dv_native_call& call) const;
    Work work_of(const dv_native_call& call, int64_t sample, int32_t thread);
    void run_tile(const dv_native_call& call, int64_t sample, int32_t count, bool side_by_side);
    void plan(int32_t samples);
    void run_operations(Work work, bool clocked);
    void run_in_groups(size_t index, Work work, bool clocked);
    const uint8_t* upcoming(size_t index, const Work& work) const;
    void run_rows(const dv_native_call& call);

    std::shared_ptr<const Layout> layout_;
    Tiling tiling_;
    int64_t thread_scratch_;        // bytes of each thread, where samples run side by side
    int64_t scratch_at_, private_at_;
    Memory memory_;
    std::vector<Stage> stages_;     // of `planned_` samples whose operations are split
    int32_t planned_ = 0;
    std::vector<Held> held_;        // of each thread
    std::vector<float> rows_;       // tensors of a program of rows; grows with the call
    std::vector<dv_native_timing> timings_;
    bool profiling_ = false;
    Team team_;                     // last: its threads end before anything they use
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_INTERPRETER_H
