// The reading of a bundle's files: of exactly the size and SHA-256 that the manifest says.
#ifndef DIFFUSEVAE_FILES_H
#define DIFFUSEVAE_FILES_H

#include <cstdint>
#include <string>
#include <string_view>

#include "bundle/open_file.h"

namespace diffusevae {

// One file of a bundle, as its manifest has it.
struct FileSpec {
    std::string file;
    int64_t size = 0;
    std::string sha256;
};

std::string sha256_of(std::string_view bytes);  // in hexadecimal

// Refuses a file (Error, BUNDLE) that ends elsewhere than in the bundle and the stores, is not regular, unreadable, or not of
// this size and SHA-256.
void verify_file(const std::string& path, const FileSpec& spec, const Stores& stores);

// The same, and its bytes: those that were hashed.
std::string read_file(const std::string& path, const FileSpec& spec, const Stores& stores);

// The first bytes of a regular file, at most `limit`.
std::string read_start(const std::string& path, size_t limit, const Stores& stores);

// A verified file mapped read-only, read ahead at once; begins at a page, hence at a multiple of 64 bytes.
class MappedFile {
public:
    MappedFile() = default;
    MappedFile(const std::string& path, const FileSpec& spec, const Stores& stores);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::string_view bytes() const { return {static_cast<const char*>(at_), size_}; }

private:
    void* at_ = nullptr;
    size_t size_ = 0;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_FILES_H
