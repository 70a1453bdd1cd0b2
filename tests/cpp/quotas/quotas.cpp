// What the library reads from control groups. Prints quota and threads for each root folder and affinity it is given.
#include <cstdio>
#include <cstdlib>

#include "threads.h"

int main(int count, char** arguments) {
    for (int i = 1; i + 1 < count; i += 2) {
        const char* root = arguments[i];
        std::printf("%.17g %d\n", diffusevae::cpu_quota(root), diffusevae::default_threads(root, std::atoi(arguments[i + 1])));
    }
}
