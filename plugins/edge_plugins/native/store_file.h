// A file that appears under its name only when it is complete: on Linux, with tensors written through mappings.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace edge {

// The whole of a regular file of at least `least` bytes, read-only; null if there is none that can be read.
std::shared_ptr<const uint8_t> map_file(const std::string& path, uint64_t least, uint64_t* size);

// Everything here throws std::runtime_error where the system refuses. Not published, the file goes with the object;
// one that a killed process left goes when the next one of that path is made.
class StoreFile {
 public:
  // A new file `path`.XXXXXX.tmp with `header` bytes left free.
  StoreFile(const std::string& path, uint64_t header);
  ~StoreFile();
  StoreFile(const StoreFile&) = delete;
  StoreFile& operator=(const StoreFile&) = delete;

  // Lets `fill` write the next `bytes`, which begin at a multiple of 64; they stay mapped, read-only from then on.
  std::shared_ptr<const uint8_t> append(uint64_t bytes, const std::function<void(uint8_t*)>& fill, uint64_t* offset);
  void write(uint64_t offset, const void* data, uint64_t bytes);
  uint64_t size() const { return size_; }

  // Puts everything on disk and gives the file its name.
  void publish();

 private:
  void create();

  const std::string path_;
  std::string temporary_;
  int file_ = -1;
  uint64_t size_;
};

}  // namespace edge
