// What a run looks at between two tiles of samples: whether its caller wants to stop it, or to have the thread back for a while.
#ifndef DIFFUSEVAE_NATIVE_WATCH_H
#define DIFFUSEVAE_NATIVE_WATCH_H

#include <chrono>

#include "diffusevae/native.h"
#include "program.h"

namespace diffusevae {
namespace native {

inline double now_ms() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Watch {
public:
    explicit Watch(dv_native_slice& slice, int32_t (*stop)(void*) = nullptr, void* user = nullptr)
        : slice_(slice), stop_(stop), user_(user), begin_(slice.ms > 0.0 ? now_ms() : 0.0) {}

    dv_native_slice& slice() { return slice_; }

    // Throws Failure where the run ends here. The first look lets it go on whatever the clock says: every slice gets on.
    void look() {
        if (stop_ && stop_(user_) != 0) throw Failure(DV_NATIVE_CANCELLED, "the caller stopped the run");
        if (slice_.ms > 0.0 && looked_) {
            const double now = now_ms();
            if (now - begin_ >= slice_.ms) {
                slice_.left_ms = now;
                throw Failure(DV_NATIVE_PAUSED, "the slice is over");
            }
        }
        looked_ = true;
    }

private:
    dv_native_slice& slice_;
    int32_t (*stop_)(void*);
    void* user_;
    double begin_;
    bool looked_ = false;
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_WATCH_H
