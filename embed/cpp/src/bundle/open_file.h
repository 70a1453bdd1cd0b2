// The files of a bundle, opened: links may end in its own folder, or in a store that the caller names. engine/bundle/links.py
// is the same in Python.
#ifndef DIFFUSEVAE_OPEN_FILE_H
#define DIFFUSEVAE_OPEN_FILE_H

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"

namespace diffusevae {

using Stores = std::vector<std::string>;  // real paths of folders

// The folders that a caller names; Error (ARGUMENT) where one is none.
Stores stores_of(const char* const* named, int64_t count);

// Error (BUNDLE) about a file, with the cure to build the bundle again.
[[noreturn]] void refuse_file(const std::string& path, const std::string& found, const std::string& expected);

// A regular file that ends in its own folder or in a store: what was opened is what was checked.
class OpenFile {
public:
    OpenFile(const std::string& path, const Stores& stores);
    ~OpenFile();
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    int handle() const { return handle_; }
    void check_size(int64_t size) const;
    size_t read(char* to, size_t size) const;  // up to `size` bytes; fewer only at the end of the file

private:
    std::string path_;
    int handle_ = -1;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_OPEN_FILE_H
