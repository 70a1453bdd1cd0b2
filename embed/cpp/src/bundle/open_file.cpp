#include "bundle/open_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "bundle/json.h"
#include "checks.h"
#include "text.h"

namespace diffusevae {
namespace {

[[noreturn]] void refuse_unreadable(const std::string& path, int error) {
    refuse(Origin{path, "", std::string("check its permissions and disk, or ") + kRebuild}, "",
           "a file that cannot be read (" + std::generic_category().message(error) + ")", "a file of the bundle");
}

void check_regular(const std::string& path, const struct stat& found) {
    if (!S_ISREG(found.st_mode)) refuse_file(path, "no regular file", "one, or a link to one");
}

// The path without links, nothing and errno where there is none.
std::optional<std::string> real_path(const std::string& path) {
    const std::unique_ptr<char, void (*)(void*)> found(realpath(path.c_str(), nullptr), std::free);
    return found ? std::optional<std::string>(found.get()) : std::nullopt;
}

std::string parent_of(const std::string& path) { return path.substr(0, std::max<size_t>(1, path.rfind('/'))); }

std::string with_slash(const std::string& folder) { return folder.back() == '/' ? folder : folder + "/"; }

bool lies_in(const std::string& path, const std::string& root) {
    const std::string start = with_slash(root);
    return path.size() > start.size() && path.compare(0, start.size(), start) == 0;
}

bool lies_in_any(const std::string& path, const std::vector<std::string>& roots) {
    return std::any_of(roots.begin(), roots.end(), [&](const std::string& root) { return lies_in(path, root); });
}

// Where a link leads is untrusted text.
std::string shown(const std::string& path) { return is_printable(path) ? path : in_quotes(path); }

std::string shell_word(const std::string& text) {
    static const char* const kPlain = "@%+=:,./_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    if (!text.empty() && text.find_first_not_of(kPlain) == std::string::npos) return text;
    std::string quoted = "'";
    for (const char c : text) quoted += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
    return quoted + "'";
}

// The folder above all that the links of a bundle lead out of it to, so that one option is enough.
std::string store_for(const std::string& folder, const std::string& real, const std::vector<std::string>& roots) {
    const std::string own = parent_of(real);
    std::string common = with_slash(own);
    const std::unique_ptr<DIR, int (*)(DIR*)> listed(opendir(folder.c_str()), closedir);
    while (const dirent* entry = listed ? readdir(listed.get()) : nullptr) {
        const std::string path = folder + "/" + entry->d_name;
        struct stat status = {};
        if (lstat(path.c_str(), &status) != 0 || !S_ISLNK(status.st_mode)) continue;
        const std::optional<std::string> end = real_path(path);
        if (!end || lies_in_any(*end, roots)) continue;
        while (end->compare(0, common.size(), common) != 0) common = with_slash(parent_of(common.substr(0, common.size() - 1)));
    }
    return common == "/" ? own : common.substr(0, common.size() - 1);
}

// Error (BUNDLE) unless the file at the end of a path is where one may be: its real path, and the root that it lies in.
std::pair<std::string, std::string> checked_end(const std::string& path, const Stores& stores) {
    struct stat found = {};
    if (stat(path.c_str(), &found) != 0) {
        const int error = errno;
        std::string goal(4096, '\0');
        const ssize_t size = error == ENOENT ? readlink(path.c_str(), goal.data(), goal.size()) : -1;
        if (size < 0) refuse_unreadable(path, error);
        refuse(Origin{path, "", std::string("copy the bundle together with what its links lead to (cp -rL), or ") + kRebuild},
               "", "a link to " + shown(goal.substr(0, size_t(size))) + ", where there is nothing", "one to a file");
    }
    check_regular(path, found);  // before it is opened: some devices act on that
    const std::string folder = path.substr(0, path.rfind('/'));
    const std::optional<std::string> real = real_path(path), own = real_path(folder.empty() ? "/" : folder);
    if (!real || !own) refuse_unreadable(path, errno);
    std::vector<std::string> roots = {*own};
    roots.insert(roots.end(), stores.begin(), stores.end());
    for (const std::string& root : roots)
        if (lies_in(*real, root)) return {*real, root};
    const std::string store = store_for(folder, *real, roots);
    refuse(Origin{path, "", "if that place is to be trusted, name it: --allow-links "
                                + shell_word(is_printable(store) ? store : "STORE") + " (in code: allow_links)"},
           "", "a link to " + shown(*real), "one that ends in " + joined(roots, " or "));
}

// The file `real` below `root`, from folder to folder: a link that is put there meanwhile is not followed. -1 and errno.
int walk(const std::string& root, const std::string& real) {
    constexpr int kFolder = O_PATH | O_DIRECTORY | O_CLOEXEC, kFile = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    int folder = ::open(root.c_str(), kFolder);
    for (size_t begin = with_slash(root).size(), end; folder >= 0; begin = end + 1) {
        end = real.find('/', begin);
        const std::string part = real.substr(begin, end - begin);
        const int inner = openat(folder, part.c_str(), end == std::string::npos ? kFile : kFolder | O_NOFOLLOW);
        const int error = errno;
        ::close(folder);
        errno = error;
        if (end == std::string::npos) return inner;
        folder = inner;
    }
    return folder;
}

}  // namespace

Stores stores_of(const char* const* named, int64_t count) {
    count_beside("allow_links", named, "allow_links_count", count);
    Stores stores;
    for (int64_t i = 0; i < count; ++i) {
        const std::optional<std::string> real = named[i] != nullptr ? real_path(named[i]) : std::nullopt;
        struct stat found = {};
        if (!real || stat(real->c_str(), &found) != 0 || !S_ISDIR(found.st_mode))
            refuse_argument("allow_links: found " + (named[i] != nullptr ? in_quotes(named[i]) : "a null pointer")
                            + ", expected a folder where a bundle's links may end, or / for any place; check the path");
        stores.push_back(*real);
    }
    return stores;
}

void refuse_file(const std::string& path, const std::string& found, const std::string& expected) {
    refuse(Origin{path, "", kRebuild}, "", found, expected);
}

OpenFile::OpenFile(const std::string& path, const Stores& stores) : path_(path) {
    const auto [real, root] = checked_end(path, stores);
    handle_ = walk(root, real);
    struct stat found = {};
    if (handle_ < 0 || fstat(handle_, &found) != 0) refuse_unreadable(path, errno);
    try {
        check_regular(path, found);  // once more: another may have been put there since
    } catch (const Error&) {
        ::close(handle_);
        throw;
    }
}

OpenFile::~OpenFile() { ::close(handle_); }

void OpenFile::check_size(int64_t size) const {
    struct stat found = {};
    if (fstat(handle_, &found) != 0) refuse_unreadable(path_, errno);
    if (found.st_size != size)
        refuse_file(path_, std::to_string(found.st_size) + " bytes",
                    std::to_string(size) + ": the file is truncated or of another build");
}

size_t OpenFile::read(char* to, size_t size) const {
    size_t done = 0;
    while (done < size) {
        const ssize_t count = ::read(handle_, to + done, size - done);
        if (count == 0) break;
        if (count < 0 && errno != EINTR) refuse_unreadable(path_, errno);
        if (count > 0) done += size_t(count);
    }
    return done;
}

}  // namespace diffusevae
