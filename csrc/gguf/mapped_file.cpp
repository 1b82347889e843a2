#include "gguf/mapped_file.h"

#include "gguf/error.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#    define OTTER_HAVE_MMAP
#    include <fcntl.h>
#    include <sys/mman.h>
#    include <sys/stat.h>
#    include <unistd.h>
#endif

namespace otter {

namespace {

[[noreturn]] void fail(const std::string & path, const std::string & what) {
    throw otter_error(error_kind::file, cat(path, ": ", what));
}

} // namespace

void check_path(const std::string & path) {
    if (path.empty()) {
        fail("''", "names no file");
    }
    if (path.find('\0') != std::string::npos) {
        fail(quoted(path), "holds a NUL, which no name of a file does");
    }
}

std::shared_ptr<const mapped_file> mapped_file::of(const std::string & path, std::vector<uint8_t> content) {
    if (content.empty()) {
        fail(path, "is empty, expected a GGUF file");
    }
    std::shared_ptr<mapped_file> held(new mapped_file());
    held->buffer  = std::move(content);
    held->bytes   = held->buffer.data();
    held->n_bytes = held->buffer.size();
    return held;
}

#ifdef OTTER_HAVE_MMAP

namespace {

struct descriptor {
    int fd;

    explicit descriptor(const std::string & path) {
        do {
            // without O_NONBLOCK a named pipe would wait for its writer
            fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        } while (fd < 0 && errno == EINTR);
    }
    descriptor(const descriptor &)             = delete;
    descriptor & operator=(const descriptor &) = delete;
    ~descriptor() {
        if (fd >= 0) {
            ::close(fd);
        }
    }
};

} // namespace

std::shared_ptr<const mapped_file> mapped_file::open(const std::string & path) {
    check_path(path);
    const descriptor file(path);
    struct stat      info = {};
    if (file.fd < 0 || fstat(file.fd, &info) != 0) {
        fail(path, cat("cannot open: ", std::strerror(errno)));
    }
    if (S_ISDIR(info.st_mode)) {
        fail(path, "is a directory, expected a GGUF file");
    }
    if (!S_ISREG(info.st_mode)) {
        fail(path, "is not a regular file, expected a GGUF file");
    }
    if (info.st_size <= 0) {
        fail(path, "is empty, expected a GGUF file");
    }
    if (static_cast<uint64_t>(info.st_size) > SIZE_MAX) {
        fail(path, cat("has ", info.st_size, " bytes, more than this process can address"));
    }
    void * address = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_SHARED, file.fd, 0);
    if (address == MAP_FAILED) {
        fail(path, cat("cannot map into memory: ", std::strerror(errno)));
    }
    std::shared_ptr<mapped_file> mapped(new mapped_file());
    mapped->bytes   = static_cast<const uint8_t *>(address);
    mapped->n_bytes = static_cast<uint64_t>(info.st_size);
    return mapped;
}

mapped_file::~mapped_file() {
    if (bytes != nullptr && buffer.empty()) {
        munmap(const_cast<uint8_t *>(bytes), static_cast<size_t>(n_bytes));
    }
}

#else

std::shared_ptr<const mapped_file> mapped_file::open(const std::string & path) {
    check_path(path);
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) {
        fail(path, cat("cannot open: ", std::strerror(errno)));
    }
    const std::streamoff size = file.tellg();
    if (size <= 0) {
        fail(path, "is empty or not a regular file, expected a GGUF file");
    }
    std::vector<uint8_t> content(static_cast<size_t>(size));
    file.seekg(0);
    if (!file.read(reinterpret_cast<char *>(content.data()), size)) {
        fail(path, "cannot read");
    }
    return of(path, std::move(content));
}

mapped_file::~mapped_file() = default;

#endif

} // namespace otter
