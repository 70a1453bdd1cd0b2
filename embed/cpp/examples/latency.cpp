// The time of an image, from seed to pixels:  latency BUNDLE [BATCH [REPEATS [WARM_UP [BACKEND]]]]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <diffusevae.hpp>

int main(int argc, char** argv) try {
    if (argc < 2) return std::fputs("usage: latency BUNDLE [BATCH [REPEATS [WARM_UP [BACKEND]]]]\n", stderr), 2;
    const auto number = [&](int index, int otherwise) { return argc > index ? std::stoi(argv[index]) : otherwise; };
    const int batch = number(2, 1), repeats = std::max(1, number(3, 50)), warm_up = number(4, 5);
    diffusevae::OpenOptions opening;
    if (argc > 5) opening.backend = argv[5];
    diffusevae::Sampler sampler(argv[1], opening);

    diffusevae::SampleOptions options;
    options.n = batch;
    std::vector<double> times;
    int steps = 0;
    for (int i = 0; i < warm_up + repeats; ++i) {
        options.seed = uint64_t(i);
        const auto begin = std::chrono::steady_clock::now();
        steps = int(sampler.sample(options).timesteps.size());
        const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - begin;
        if (i >= warm_up) times.push_back(taken.count());
    }
    std::sort(times.begin(), times.end());
    // The smallest time that at least so many percent of the runs did not exceed.
    const auto percentile = [&](size_t percent) { return times[(times.size() * percent + 99) / 100 - 1]; };

    const diffusevae::Info& info = sampler.info();
    std::printf("%s %s %s, %d threads, batch %d, %d steps, %d runs after %d\n", info.backend.c_str(),
                info.precision.c_str(), info.isa.c_str(), int(info.threads), batch, steps, repeats, warm_up);
    std::printf("p50 %.3f ms  p90 %.3f ms  p99 %.3f ms\n", percentile(50), percentile(90), percentile(99));
    return 0;
} catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
}
