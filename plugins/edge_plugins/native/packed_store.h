// The packed weights of one session, in memory or in a file that later sessions map.
//
// The file: a header, the packed tensors at multiples of 64 bytes, and an index of names, shapes and places. It is
// made under a temporary name beside its path and renamed there when it is complete and on disk, so a reader finds
// the old file, the new one or none. A file is trusted if its header, its key and the checksum of its index agree and
// everything lies inside it; that the tensors' bytes are those of this model is what the key is for, so the caller
// derives the key from the weights' hash. Anything else about a file means that it is made anew.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "packed.h"

namespace edge {

// The format of the file and of what packed.h lays out: a file of another number is made anew.
constexpr uint32_t kPackedLayout = 1;

// A node's weight: `count` matrices of one shape behind each other.
struct PackedRequest {
  std::string name;    // unique in the model
  PackedMatrix shape;  // half_scales, values and scales are found out
  int64_t count = 1;
  const void* weight = nullptr;   // (count, in, out)
  const float* scales = nullptr;  // (count, in / block, out)
};

struct PackedWeight {
  std::vector<PackedMatrix> matrices;
  std::shared_ptr<const uint8_t> memory;  // keeps them
};

class StoreFile;

class PackedStore {
 public:
  using Log = std::function<void(bool warning, const std::string& message)>;

  // An empty path keeps everything in memory.
  PackedStore(std::string path, std::string key);
  ~PackedStore();
  PackedStore(const PackedStore&) = delete;
  PackedStore& operator=(const PackedStore&) = delete;

  // The weight from the file, or packed now. Where the file cannot be written it warns once and uses memory.
  PackedWeight get(const PackedRequest& request, const Log& log);

  // Gives a new file its name. To be called once all weights were asked for; only the first call does anything.
  void publish(const Log& log);

 private:
  struct Entry {
    uint32_t half_scales = 0;
    PackedMatrix shape;
    int64_t count = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  using Index = std::map<std::string, Entry>;

  void open_existing(const Log& log);
  std::string read_index(const uint8_t* file, uint64_t size);
  std::string index_bytes() const;
  const Entry* find(const Index& index, const PackedRequest& request) const;
  PackedWeight serve(const std::string& name, const Entry& entry, const Log& log);
  PackedWeight append(const std::string& name, Entry entry, const std::function<void(uint8_t*)>& fill);
  void start_file();
  void give_up(const std::string& reason, const Log& log);
  void write_out();

  const std::string path_, key_;
  std::mutex mutex_;
  std::once_flag published_;
  bool opened_ = false, failed_ = false;
  std::shared_ptr<const uint8_t> existing_;  // the mapped file
  Index existing_index_, served_, new_index_;
  std::map<std::string, std::shared_ptr<const uint8_t>> new_memory_;
  std::unique_ptr<StoreFile> new_file_;
};

}  // namespace edge
