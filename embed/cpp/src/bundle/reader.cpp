#include "bundle/reader.h"

#include <dirent.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <system_error>
#include <tuple>
#include <vector>

#include "bundle/constants.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr int kOpenAttempts = 5;
const char* const kAside = ".aside";  // what a writer calls the old bundle between two renames
constexpr size_t kAsideDigits = 16;

// A folder and what tells it from another of the same name: the times too, as a removed one's number is soon another's.
struct Place {
    std::string folder;
    std::tuple<dev_t, ino_t, time_t, long, time_t, long> identity;

    bool operator==(const Place& other) const { return folder == other.folder && identity == other.identity; }
};

// Without the separators and "/." at its end, so that its last part is its name.
std::string trimmed(std::string path) {
    if (path.empty()) return ".";
    for (;;) {
        const size_t size = path.size();
        if (size > 1 && path.back() == '/') {
            path.pop_back();
        } else if (size > 2 && path.compare(size - 2, 2, "/.") == 0) {
            path.resize(size - 2);
        } else {
            return path;
        }
    }
}

std::string parent_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

bool is_aside(const std::string& entry, const std::string& name) {
    const std::string start = "." + name + ".";
    const size_t digits = start.size(), end = digits + kAsideDigits;
    return entry.size() > end && entry.compare(0, digits, start) == 0 && entry.compare(end, std::string::npos, kAside) == 0
           && entry.find_first_not_of("0123456789abcdef", digits) == end;
}

// The hidden folders `.NAME.<16 hexadecimal digits>.aside` beside a bundle that its writers leave.
std::vector<std::string> asides_of(const std::string& path) {
    std::vector<std::string> found;
    const std::string parent = parent_of(path), name = name_of(path);
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(parent.c_str()), closedir);
    while (const dirent* entry = folder ? readdir(folder.get()) : nullptr) {
        const std::string candidate = parent + "/" + entry->d_name;
        struct stat status = {};
        if (is_aside(entry->d_name, name) && lstat(candidate.c_str(), &status) == 0 && S_ISDIR(status.st_mode))
            found.push_back(candidate);
    }
    return found;
}

// The folder to read, or nothing and errno where there is none.
std::optional<Place> try_place(const std::string& asked, const std::string& candidate) {
    struct stat found = {};
    if (stat(candidate.c_str(), &found) != 0) return std::nullopt;
    if (!S_ISDIR(found.st_mode)) {
        const std::string cure = name_of(asked) == kManifestFile ? "give the folder: " + parent_of(asked) : kRebuild;
        refuse(Origin{asked, "", cure}, "", "a file", "the folder of a bundle");
    }
    return Place{candidate, {found.st_dev, found.st_ino, found.st_mtim.tv_sec, found.st_mtim.tv_nsec,
                             found.st_ctim.tv_sec, found.st_ctim.tv_nsec}};
}

Place locate(const std::string& asked) {
    if (const std::optional<Place> place = try_place(asked, asked)) return *place;
    // Where folders cannot be exchanged, a writer between its two renames, or dead there, has the old bundle aside...
    std::vector<std::string> others = asides_of(asked);
    others.push_back(asked);  // ... or had, and is done by now
    for (const std::string& candidate : others)
        if (const std::optional<Place> place = try_place(asked, candidate)) return *place;
    const std::string why = std::generic_category().message(errno);
    const char* const cure = "check the path, or build a bundle with: diffusevae build CKPT --out PATH";
    refuse(Origin{in_quotes(asked, kPath), "", cure}, "", "nothing that can be read (" + why + ")", "a bundle folder");
}

std::string read_manifest_file(const std::string& folder, const Stores& stores) {
    const std::string path = folder + "/" + kManifestFile;
    struct stat found = {};
    if (lstat(path.c_str(), &found) != 0 && errno == ENOENT)
        refuse(Origin{folder, "", std::string("give the folder that the build wrote, or ") + kRebuild}, "",
               std::string("a folder without ") + kManifestFile, "a bundle");
    return read_start(path, size_t(kMaxManifestBytes) + 1, stores);
}

}  // namespace

Bundle Bundle::open(const std::string& path, const Stores& stores) {
    const std::string asked = trimmed(path);
    for (int attempt = 1; attempt < kOpenAttempts; ++attempt) {
        const Place place = locate(asked);
        try {
            return verified(place.folder, stores);
        } catch (const Error& error) {
            if (error.status() != DIFFUSEVAE_BUNDLE || locate(asked) == place) throw;
        }
    }
    return verified(locate(asked).folder, stores);
}

Bundle Bundle::verified(const std::string& folder, const Stores& stores) {
    Bundle bundle(folder, parse_manifest(read_manifest_file(folder, stores), folder + "/" + kManifestFile), stores);
    for (const FileSpec& spec : bundle.manifest_.files()) verify_file(bundle.path_of(spec), spec, stores);
    return bundle;
}

const GraphSpec& Bundle::spec(const std::string& key) const {
    if (const GraphSpec* found = manifest_.graph(key)) return *found;
    std::vector<std::string> keys;
    for (const GraphSpec& known : manifest_.graphs) keys.push_back(known.key);
    throw Error(DIFFUSEVAE_ARGUMENT, "graph: found " + in_quotes(key) + ", expected one of " + joined(keys)
                                         + ", the graphs of " + path_ + "." + did_you_mean(key, keys));
}

std::string Bundle::read_graph(const std::string& key) const {
    const GraphSpec& graph = spec(key);
    return read_file(path_of(graph), graph, stores_);
}

bool Bundle::has_engine(const std::string& backend, const std::string& precision, const std::string& graph) const {
    return find_engine(backend, precision, graph) != nullptr;
}

const EngineSpec& Bundle::engine(const std::string& backend, const std::string& precision,
                                 const std::string& graph) const {
    if (const EngineSpec* found = find_engine(backend, precision, graph)) return *found;
    std::vector<std::string> names;
    for (const EngineSpec& engine : manifest_.engines) names.push_back(engine.name());
    const std::string cure = std::string(kRebuild) + " --backends " + backend + " --precision " + precision;
    refuse(Origin{path_, "", cure}, "", "the engines " + in_quotes(names.empty() ? "none" : joined(names)),
           backend + " " + precision + " " + graph);
}

std::string Bundle::read_engine(const EngineSpec& engine, const std::string& label) const {
    const FileSpec& file = engine.file(label);
    return read_file(path_of(file), file, stores_);
}

MappedFile Bundle::map_engine(const EngineSpec& engine, const std::string& label) const {
    const FileSpec& file = engine.file(label);
    return MappedFile(path_of(file), file, stores_);
}

std::optional<std::string> Bundle::read_prior() const {
    if (!manifest_.prior) return std::nullopt;
    return read_file(path_of(*manifest_.prior), *manifest_.prior, stores_);
}

std::optional<std::string> Bundle::read_directions() const {
    if (!manifest_.directions) return std::nullopt;
    return read_file(path_of(*manifest_.directions), *manifest_.directions, stores_);
}

std::optional<std::string> Bundle::read_text() const {
    if (!manifest_.text) return std::nullopt;
    return read_file(path_of(*manifest_.text), *manifest_.text, stores_);
}

std::string Bundle::path_of(const FileSpec& spec) const { return path_ + "/" + spec.file; }

const EngineSpec* Bundle::find_engine(const std::string& backend, const std::string& precision,
                                      const std::string& graph) const {
    for (const EngineSpec& engine : manifest_.engines)
        if (engine.backend == backend && engine.precision == precision && engine.graph == graph) return &engine;
    return nullptr;
}

}  // namespace diffusevae
