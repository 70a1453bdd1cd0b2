// Affinity and control groups, read as engine/threads.py does.
#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <vector>

#include "checks.h"

namespace diffusevae {

namespace {

using Words = std::vector<std::string>;

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

// A small file's text; empty where there is none to read (another system, another cgroup version).
std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (file) text << file.rdbuf();
    return text.str();
}

Words split(const std::string& text, char between) {
    Words parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, between);) parts.push_back(part);
    return parts;
}

// By white space of any length.
Words words(const std::string& text) {
    Words found;
    std::istringstream stream(text);
    for (std::string word; stream >> word;) found.push_back(word);
    return found;
}

bool holds(const Words& list, const std::string& word) { return std::find(list.begin(), list.end(), word) != list.end(); }

// The parts of a path, without empty ones and ".".
Words parts(const std::string& path) {
    Words found;
    for (const std::string& part : split(path, '/'))
        if (!part.empty() && part != ".") found.push_back(part);
    return found;
}

// Spaces, tabs and backslashes as mountinfo writes them.
std::string unescape(std::string text) {
    const std::pair<const char*, const char*> codes[] = {{"\\040", " "}, {"\\011", "\t"}, {"\\134", "\\"}};
    for (const auto& [code, character] : codes)
        for (size_t at = 0; (at = text.find(code, at)) != std::string::npos; ++at) text.replace(at, 4, character);
    return text;
}

// {1: the cpu controller's group, 2: the unified group} from lines `id:controllers:path`.
std::map<int, std::string> groups_of_this_process(const std::string& text) {
    std::map<int, std::string> groups;
    for (const std::string& line : split(text, '\n')) {
        const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string id = line.substr(0, first), controllers = line.substr(first + 1, second - first - 1);
        if (id == "0" && controllers.empty()) {
            groups[2] = line.substr(second + 1);
        } else if (holds(split(controllers, ','), "cpu")) {
            groups[1] = line.substr(second + 1);
        }
    }
    return groups;
}

// The group's path below a mount that shows the subtree `mounted`; empty when it lies elsewhere (a namespace).
Words inside(const std::string& group, const std::string& mounted) {
    const Words path = parts(group), top = parts(mounted);
    if (path.size() < top.size() || !std::equal(top.begin(), top.end(), path.begin())) return {};
    const Words below(path.begin() + std::ptrdiff_t(top.size()), path.end());
    return holds(below, "..") ? Words{} : below;
}

bool is_number(const std::string& text) {
    return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

double quota_of(const std::string& folder, int version) {
    Words text;
    if (version == 2) {
        text = words(read(folder + "/cpu.max"));  // "max 100000" or "150000 100000"
    } else {
        text = words(read(folder + "/cpu.cfs_quota_us"));
        for (const std::string& word : words(read(folder + "/cpu.cfs_period_us"))) text.push_back(word);
    }
    // No limit is written "max" (v2) or -1 (v1).
    if (text.size() != 2 || !is_number(text[0]) || !is_number(text[1])) return kNoLimit;
    const double period = std::strtod(text[1].c_str(), nullptr);
    return period == 0.0 ? kNoLimit : std::strtod(text[0].c_str(), nullptr) / period;
}

struct ControlGroup {
    int version;
    std::string mount;
    Words inside;
};

// Each hierarchy that can limit the processor, and where in it this process is.
std::vector<ControlGroup> control_groups(const std::string& root) {
    const auto groups = groups_of_this_process(read(root + "/proc/self/cgroup"));
    std::vector<ControlGroup> found;
    for (const std::string& line : split(read(root + "/proc/self/mountinfo"), '\n')) {
        const size_t separator = line.find(" - ");
        if (separator == std::string::npos) continue;
        const Words fields = words(line.substr(0, separator)), kind = words(line.substr(separator + 3));
        if (fields.size() < 5 || kind.size() < 3) continue;
        const int version = kind[0] == "cgroup2" ? 2 : kind[0] == "cgroup" ? 1 : 0;
        const auto group = groups.find(version);
        if (group == groups.end() || (version == 1 && !holds(split(kind[2], ','), "cpu"))) continue;
        found.push_back({version, root + "/" + unescape(fields[4]), inside(group->second, unescape(fields[3]))});
    }
    return found;
}

int machine_processors() { return int(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))); }

// Processors in this thread's affinity mask, for machines of any size.
int affinity_count() {
    for (int processors = 1024; processors <= (1 << 20); processors *= 2) {
        std::vector<cpu_set_t> mask(CPU_ALLOC_SIZE(processors) / sizeof(cpu_set_t) + 1);
        const size_t bytes = mask.size() * sizeof(cpu_set_t);
        if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
    }
    return machine_processors();
}

}  // namespace

double cpu_quota(const std::string& root) {
    double smallest = kNoLimit;
    for (const ControlGroup& group : control_groups(root)) {
        std::string folder = group.mount;
        smallest = std::min(smallest, quota_of(folder, group.version));
        for (const std::string& part : group.inside) {
            folder += "/" + part;
            smallest = std::min(smallest, quota_of(folder, group.version));
        }
    }
    return smallest;
}

int default_threads(const std::string& root, std::optional<int> affinity) {
    const double allowed = double(affinity ? *affinity : affinity_count());
    return std::max(1, int(std::floor(std::min(allowed, cpu_quota(root)))));
}

int resolve_threads(std::optional<int64_t> asked) {
    if (!asked) return default_threads();
    const int64_t most = std::max<int64_t>(16, 4 * int64_t(machine_processors()));
    if (*asked < 1 || *asked > most)
        refuse_argument("threads: found " + std::to_string(*asked) + ", expected an integer in 1.." + std::to_string(most)
                        + " (this machine has " + std::to_string(machine_processors())
                        + " processors), or none for the " + std::to_string(default_threads())
                        + " that affinity and container allow");
    return int(*asked);
}

}  // namespace diffusevae
