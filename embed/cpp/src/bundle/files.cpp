#include "bundle/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "bundle/json.h"

namespace diffusevae {
namespace {

constexpr size_t kChunk = size_t(1) << 20;

[[noreturn]] void refuse(const std::string& path, const std::string& found, const std::string& expected) {
    refuse(Origin{path, "", kRebuild}, "", found, expected);
}

[[noreturn]] void refuse_unreadable(const std::string& path, int error) {
    refuse(Origin{path, "", std::string("check its permissions and disk, or ") + kRebuild}, "",
           "a file that cannot be read (" + std::generic_category().message(error) + ")", "a file of the bundle");
}

void check_regular(const std::string& path, const struct stat& found) {
    if (S_ISREG(found.st_mode)) return;
    refuse(path, S_ISLNK(found.st_mode) ? "a link" : "no regular file",
           "a regular file inside the bundle (nothing may lead out of it)");
}

// A regular file, opened for reading without following a link.
class OpenFile {
public:
    explicit OpenFile(std::string path) : path_(std::move(path)) {
        struct stat found = {};
        if (lstat(path_.c_str(), &found) != 0) refuse_unreadable(path_, errno);
        check_regular(path_, found);  // before it is opened: a pipe would wait for its writer
        handle_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (handle_ < 0) refuse_unreadable(path_, errno);
    }
    ~OpenFile() { ::close(handle_); }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;

    int handle() const { return handle_; }

    void check_size(int64_t size) const {
        struct stat found = {};
        if (fstat(handle_, &found) != 0) refuse_unreadable(path_, errno);
        check_regular(path_, found);  // once more: another may have been put there before it was opened
        if (found.st_size != size)
            refuse(path_, std::to_string(found.st_size) + " bytes",
                   std::to_string(size) + ": the file is truncated or of another build");
    }

    // Up to `size` bytes; fewer only at the end of the file.
    size_t read(char* to, size_t size) const {
        size_t done = 0;
        while (done < size) {
            const ssize_t count = ::read(handle_, to + done, size - done);
            if (count == 0) break;
            if (count < 0 && errno != EINTR) refuse_unreadable(path_, errno);
            if (count > 0) done += size_t(count);
        }
        return done;
    }

private:
    std::string path_;
    int handle_ = -1;
};

class Sha256 {
public:
    Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
        check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
    }
    void add(std::string_view bytes) { check(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1); }
    std::string hexadecimal() {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned int size = 0;
        check(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1);
        static const char* const kDigits = "0123456789abcdef";
        std::string text;
        for (unsigned int i = 0; i < size; ++i) {
            text += kDigits[digest[i] >> 4];
            text += kDigits[digest[i] & 15];
        }
        return text;
    }

private:
    static void check(bool good) {
        if (good) return;
        throw Error(DIFFUSEVAE_BACKEND, "SHA-256: found a libcrypto that refuses to compute it, expected OpenSSL 1.1.1 or newer "
                                        "that does; install it again, or check its configuration");
    }
    std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

void check_digest(const std::string& path, const std::string& found, const FileSpec& spec) {
    if (found != spec.sha256)
        refuse(path, "SHA-256 " + found, spec.sha256 + ": the file is damaged or of another build");
}

}  // namespace

std::string sha256_of(std::string_view bytes) {
    Sha256 digest;
    digest.add(bytes);
    return digest.hexadecimal();
}

void verify_file(const std::string& path, const FileSpec& spec) {
    const OpenFile file(path);
    file.check_size(spec.size);
    Sha256 digest;
    std::vector<char> buffer(kChunk);
    while (const size_t count = file.read(buffer.data(), buffer.size())) digest.add({buffer.data(), count});
    check_digest(path, digest.hexadecimal(), spec);
}

std::string read_file(const std::string& path, const FileSpec& spec) {
    const OpenFile file(path);
    file.check_size(spec.size);
    std::string data(size_t(spec.size) + 1, '\0');  // one more: a file that grew meanwhile has another SHA-256
    data.resize(file.read(data.data(), data.size()));
    check_digest(path, sha256_of(data), spec);
    return data;
}

std::string read_start(const std::string& path, size_t limit) {
    const OpenFile file(path);
    std::string data(limit, '\0');
    data.resize(file.read(data.data(), data.size()));
    return data;
}

MappedFile::MappedFile(const std::string& path, const FileSpec& spec) {
    const OpenFile file(path);
    file.check_size(spec.size);
#ifdef MAP_POPULATE
    constexpr int kFlags = MAP_PRIVATE | MAP_POPULATE;  // else the first step would stop at every page of every layer
#else
    constexpr int kFlags = MAP_PRIVATE;
#endif
    void* const at = mmap(nullptr, size_t(spec.size), PROT_READ, kFlags, file.handle(), 0);
    if (at == MAP_FAILED)
        refuse(Origin{path, "", std::string("check the free memory and the disk, or ") + kRebuild}, "",
               "a file that cannot be mapped (" + std::generic_category().message(errno) + ")", "packed weights");
    MappedFile mapped;  // gives the mapping back where the next line throws
    mapped.at_ = at;
    mapped.size_ = size_t(spec.size);
    check_digest(path, sha256_of(mapped.bytes()), spec);
    *this = std::move(mapped);
}

MappedFile::~MappedFile() {
    if (at_ != nullptr) munmap(at_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(size_, other.size_);
    return *this;
}

}  // namespace diffusevae
