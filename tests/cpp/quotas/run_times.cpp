// What the library expects of runs. Reads lines `calls loop_ms total_ms`; prints, after each, what 1, 3 and 10 calls usually take,
// and what they keep.
#include "run_times.h"

#include <cstdio>

int main() {
    diffusevae::RunTimes times;
    long calls;
    for (double loop, total; std::scanf("%ld %lf %lf", &calls, &loop, &total) == 3;) {
        times.add(calls, loop, total);
        for (const int64_t asked : {1, 3, 10})
            std::printf("%.17g %.17g ", times.pace().usual(asked), times.pace().kept(asked));
        std::printf("\n");
    }
}
