#include "store_file.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "memory.h"

namespace edge {
namespace {

constexpr const char* kSuffix = ".tmp";

[[noreturn]] void fail(const std::string& what, int error) {
  throw std::runtime_error(what + " failed (" + std::strerror(error) + ")");
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

// The owner of a temporary file holds its lock for as long as it lives: an unlocked one was left by a killed process.
void remove_leftovers(const std::string& path) {
  std::string pattern;
  for (const char c : path) pattern += std::strchr("*?[]\\", c) != nullptr ? std::string("\\") + c : std::string(1, c);
  glob_t found{};
  if (glob((pattern + ".??????" + kSuffix).c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc; ++i) {
      const int file = open(found.gl_pathv[i], O_RDWR | O_CLOEXEC | O_NOFOLLOW);
      if (file < 0) continue;
      if (flock(file, LOCK_EX | LOCK_NB) == 0) unlink(found.gl_pathv[i]);
      close(file);
    }
  }
  globfree(&found);
}

}  // namespace

std::shared_ptr<const uint8_t> map_file(const std::string& path, uint64_t least, uint64_t* size) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return nullptr;
  struct stat info {};
  std::shared_ptr<uint8_t> mapped;
  if (fstat(file, &info) == 0 && S_ISREG(info.st_mode) && static_cast<uint64_t>(info.st_size) >= least) {
    *size = static_cast<uint64_t>(info.st_size);
    mapped = map_pages(file, 0, *size, PROT_READ, MAP_SHARED);
    // The first step would otherwise wait for the disk page by page.
    if (mapped != nullptr) madvise(mapped.get(), *size, MADV_WILLNEED);
  }
  close(file);
  return mapped;
}

StoreFile::StoreFile(const std::string& path, uint64_t header) : path_(path), size_(header) {
  remove_leftovers(path);
  create();
}

void StoreFile::create() {
  for (;;) {
    temporary_ = path_ + ".XXXXXX" + kSuffix;
    file_ = mkostemps(temporary_.data(), static_cast<int>(std::strlen(kSuffix)), O_CLOEXEC);
    if (file_ < 0) fail("creating " + temporary_, errno);
    struct stat info {};
    // Between the two calls another process may have taken it for a leftover: then once more.
    if (flock(file_, LOCK_EX) == 0 && fstat(file_, &info) == 0 && info.st_nlink > 0) {
      fchmod(file_, 0644);
      return;
    }
    close(file_);
  }
}

StoreFile::~StoreFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
  if (file_ >= 0) close(file_);
}

std::shared_ptr<const uint8_t> StoreFile::append(uint64_t bytes, const std::function<void(uint8_t*)>& fill,
                                                 uint64_t* offset) {
  // Blocks are reserved first: on a full disk this says so, where writing through the mapping would raise SIGBUS.
  const int error = posix_fallocate(file_, static_cast<off_t>(size_), static_cast<off_t>(bytes));
  if (error != 0) fail("reserving " + std::to_string(bytes) + " bytes in " + temporary_, error);
  const auto mapped = map_pages(file_, size_, bytes, PROT_READ | PROT_WRITE, MAP_SHARED);
  if (mapped == nullptr) fail("mapping " + temporary_, errno);
  fill(mapped.get());
  *offset = size_;
  size_ = (size_ + bytes + 63) / 64 * 64;
  return mapped;
}

void StoreFile::write(uint64_t offset, const void* data, uint64_t bytes) {
  const char* from = static_cast<const char*>(data);
  for (uint64_t done = 0; done < bytes;) {
    const ssize_t written = pwrite(file_, from + done, bytes - done, static_cast<off_t>(offset + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail("writing " + temporary_, errno);
    done += static_cast<uint64_t>(written);
  }
}

void StoreFile::publish() {
  if (fsync(file_) != 0) fail("writing " + temporary_, errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) fail("renaming " + temporary_, errno);
  temporary_.clear();
  const int folder = open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) return;
  fsync(folder);  // best effort: some file systems refuse it for directories
  close(folder);
}

}  // namespace edge
