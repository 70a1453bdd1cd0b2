#include "bundle/files.h"

#include <openssl/evp.h>
#include <sys/mman.h>

#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "bundle/json.h"

namespace diffusevae {
namespace {

constexpr size_t kChunk = size_t(1) << 20;

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
        refuse_file(path, "SHA-256 " + found, spec.sha256 + ": the file is damaged or of another build");
}

}  // namespace

std::string sha256_of(std::string_view bytes) {
    Sha256 digest;
    digest.add(bytes);
    return digest.hexadecimal();
}

void verify_file(const std::string& path, const FileSpec& spec, const Stores& stores) {
    const OpenFile file(path, stores);
    file.check_size(spec.size);
    Sha256 digest;
    std::vector<char> buffer(kChunk);
    while (const size_t count = file.read(buffer.data(), buffer.size())) digest.add({buffer.data(), count});
    check_digest(path, digest.hexadecimal(), spec);
}

std::string read_file(const std::string& path, const FileSpec& spec, const Stores& stores) {
    const OpenFile file(path, stores);
    file.check_size(spec.size);
    std::string data(size_t(spec.size) + 1, '\0');  // one more: a file that grew meanwhile has another SHA-256
    data.resize(file.read(data.data(), data.size()));
    check_digest(path, sha256_of(data), spec);
    return data;
}

std::string read_start(const std::string& path, size_t limit, const Stores& stores) {
    const OpenFile file(path, stores);
    std::string data(limit, '\0');
    data.resize(file.read(data.data(), data.size()));
    return data;
}

MappedFile::MappedFile(const std::string& path, const FileSpec& spec, const Stores& stores) {
    const OpenFile file(path, stores);
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
