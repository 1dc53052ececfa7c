#include "packed_store.h"

#include <cstring>
#include <stdexcept>
#include <utility>

#include "memory.h"
#include "store_file.h"

namespace edge {
namespace {

constexpr char kMagic[8] = {'E', 'D', 'G', 'E', 'P', 'A', 'C', 'K'};

// The first bytes of a file, in the order of little-endian machines, which are all that this runs on.
struct Header {
  char magic[8];
  uint32_t layout;
  uint32_t unused;
  uint64_t file_bytes;
  uint64_t index_offset;
  uint64_t index_bytes;
  uint64_t index_checksum;
  uint8_t padding[16];
};
static_assert(sizeof(Header) == 64, "tensors begin behind it, at a multiple of 64");

// FNV-1a.
uint64_t checksum(const uint8_t* data, uint64_t bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (uint64_t i = 0; i < bytes; ++i) hash = (hash ^ data[i]) * 0x100000001b3;
  return hash;
}

// Reads numbers and texts from bytes and never beyond them.
class Reader {
 public:
  Reader(const uint8_t* data, uint64_t bytes) : data_(data), left_(bytes) {}

  uint64_t number() {
    uint64_t value;
    std::memcpy(&value, take(8), 8);
    return value;
  }
  std::string text() {
    const uint64_t bytes = number();
    return {reinterpret_cast<const char*>(take(bytes)), static_cast<size_t>(bytes)};
  }

 private:
  const uint8_t* take(uint64_t bytes) {
    if (bytes > left_) throw std::runtime_error("its index is cut off");
    left_ -= bytes;
    return std::exchange(data_, data_ + bytes);
  }

  const uint8_t* data_;
  uint64_t left_;
};

void write_number(std::string& target, uint64_t value) { target.append(reinterpret_cast<const char*>(&value), 8); }

void write_text(std::string& target, const std::string& text) {
  write_number(target, text.size());
  target += text;
}

// Bytes of one matrix as the model stores it.
uint64_t source_bytes(const PackedMatrix& m) {
  const uint64_t count = static_cast<uint64_t>(m.in) * static_cast<uint64_t>(m.out);
  return m.format == Format::kFloat32    ? 4 * count
         : m.format == Format::kBfloat16 ? 2 * count
         : m.format == Format::kInt8     ? count
                                         : count / 2;
}

void pack_all(const PackedRequest& request, const PackedMatrix& shape, uint8_t* target) {
  const auto* weight = static_cast<const uint8_t*>(request.weight);
  const int64_t scales = shape.quantized() ? shape.in / shape.block * shape.out : 0;
  for (int64_t i = 0; i < request.count; ++i) {
    pack(shape, weight + static_cast<uint64_t>(i) * source_bytes(shape), request.scales + i * scales,
         target + static_cast<uint64_t>(i) * shape.bytes());
  }
}

PackedWeight matrices_at(const PackedMatrix& shape, int64_t count, std::shared_ptr<const uint8_t> memory) {
  PackedWeight weight{{}, std::move(memory)};
  for (int64_t i = 0; i < count; ++i) {
    weight.matrices.push_back(packed_at(shape, weight.memory.get() + static_cast<uint64_t>(i) * shape.bytes()));
  }
  return weight;
}

}  // namespace

PackedStore::PackedStore(std::string path, std::string key) : path_(std::move(path)), key_(std::move(key)) {}
PackedStore::~PackedStore() = default;

PackedWeight PackedStore::get(const PackedRequest& request, const Log& log) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!opened_) open_existing(log);
  opened_ = true;
  if (const Entry* entry = find(new_index_, request)) {
    return matrices_at(entry->shape, entry->count, new_memory_.at(request.name));
  }
  if (const Entry* entry = find(existing_index_, request)) return serve(request.name, *entry, log);
  Entry entry;
  entry.shape = request.shape;
  entry.shape.half_scales =
      request.scales != nullptr &&
      fits_float16(request.scales, request.count * request.shape.in / request.shape.block * request.shape.out);
  entry.count = request.count;
  entry.bytes = static_cast<uint64_t>(request.count) * entry.shape.bytes();
  const auto fill = [&](uint8_t* target) { pack_all(request, entry.shape, target); };
  if (!path_.empty() && !failed_ && new_index_.count(request.name) == 0) {
    try {
      if (new_file_ == nullptr) start_file();
      return append(request.name, entry, fill);
    } catch (const std::runtime_error& error) {
      give_up(error.what(), log);
    }
  }
  const std::shared_ptr<uint8_t> memory = new_memory(entry.bytes);
  fill(memory.get());
  return matrices_at(entry.shape, entry.count, memory);
}

PackedWeight PackedStore::serve(const std::string& name, const Entry& entry, const Log& log) {
  const uint8_t* old = existing_.get() + entry.offset;
  served_[name] = entry;
  if (new_file_ != nullptr) {
    // The file lacked another weight, so that a complete one is under way, where this belongs too.
    try {
      append(name, entry, [&](uint8_t* target) { std::memcpy(target, old, entry.bytes); });
    } catch (const std::runtime_error& error) {
      give_up(error.what(), log);
    }
  }
  return matrices_at(entry.shape, entry.count, {existing_, old});
}

const PackedStore::Entry* PackedStore::find(const Index& index, const PackedRequest& request) const {
  const auto found = index.find(request.name);
  if (found == index.end()) return nullptr;
  const PackedMatrix &a = found->second.shape, &b = request.shape;
  const bool same = a.format == b.format && a.in == b.in && a.out == b.out && a.block == b.block;
  return same && found->second.count == request.count ? &found->second : nullptr;
}

void PackedStore::open_existing(const Log& log) {
  if (path_.empty()) return;
  uint64_t size = 0;
  const std::shared_ptr<const uint8_t> file = map_file(path_, sizeof(Header), &size);
  if (file == nullptr) return;
  try {
    const std::string key = read_index(file.get(), size);
    if (key != key_) throw std::runtime_error("it is of other weights");
    existing_ = file;
    log(false, "Packed weights are mapped from " + path_);
  } catch (const std::runtime_error& error) {
    existing_index_.clear();
    log(false, "The packed weights in " + path_ + " are made anew: " + error.what());
  }
}

std::string PackedStore::read_index(const uint8_t* file, uint64_t size) {
  Header header;
  std::memcpy(&header, file, sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) throw std::runtime_error("it is no such file");
  if (header.layout != kPackedLayout) throw std::runtime_error("it is of another version");
  if (header.file_bytes != size || header.index_offset > size || header.index_bytes > size - header.index_offset) {
    throw std::runtime_error("it is cut off");
  }
  const uint8_t* index = file + header.index_offset;
  if (checksum(index, header.index_bytes) != header.index_checksum) throw std::runtime_error("its index is damaged");
  Reader reader(index, header.index_bytes);
  const std::string key = reader.text();
  for (uint64_t left = reader.number(); left > 0; --left) {
    const std::string name = reader.text();
    Entry entry;
    const uint64_t format = reader.number();
    entry.shape.format = static_cast<Format>(format);
    entry.shape.half_scales = reader.number() != 0;
    entry.count = static_cast<int64_t>(reader.number());
    entry.shape.in = static_cast<int64_t>(reader.number());
    entry.shape.out = static_cast<int64_t>(reader.number());
    entry.shape.block = static_cast<int64_t>(reader.number());
    entry.offset = reader.number();
    entry.bytes = reader.number();
    const bool inside = entry.offset % 64 == 0 && entry.offset >= sizeof(Header) &&
                        entry.offset <= header.index_offset && entry.bytes <= header.index_offset - entry.offset;
    const bool whole = format <= static_cast<uint64_t>(Format::kInt4) && entry.count > 0 &&
                       unpackable(entry.shape) == nullptr &&
                       entry.bytes / entry.shape.bytes() == static_cast<uint64_t>(entry.count) &&
                       entry.bytes % entry.shape.bytes() == 0;
    if (!inside || !whole) throw std::runtime_error("its index contradicts itself");
    existing_index_[name] = entry;
  }
  return key;
}

// ---- Making a file ----

void PackedStore::start_file() {
  new_file_ = std::make_unique<StoreFile>(path_, sizeof(Header));
  for (const auto& [name, entry] : Index(served_)) {
    const uint8_t* old = existing_.get() + entry.offset;
    append(name, entry, [&, bytes = entry.bytes](uint8_t* target) { std::memcpy(target, old, bytes); });
  }
}

PackedWeight PackedStore::append(const std::string& name, Entry entry, const std::function<void(uint8_t*)>& fill) {
  std::shared_ptr<const uint8_t> memory = new_file_->append(entry.bytes, fill, &entry.offset);
  new_index_[name] = entry;
  new_memory_[name] = memory;
  return matrices_at(entry.shape, entry.count, memory);
}

void PackedStore::give_up(const std::string& reason, const Log& log) {
  failed_ = true;
  new_file_.reset();
  log(true, "The packed weights stay in memory and are packed again at the next start: " + reason + ". Give " + path_ +
                " room on a writable disk, or leave out edge.packed_weights.");
}

std::string PackedStore::index_bytes() const {
  std::string index;
  write_text(index, key_);
  write_number(index, new_index_.size());
  for (const auto& [name, entry] : new_index_) {
    write_text(index, name);
    for (const uint64_t number : {static_cast<uint64_t>(entry.shape.format),
                                  static_cast<uint64_t>(entry.shape.half_scales), static_cast<uint64_t>(entry.count),
                                  static_cast<uint64_t>(entry.shape.in), static_cast<uint64_t>(entry.shape.out),
                                  static_cast<uint64_t>(entry.shape.block), entry.offset, entry.bytes}) {
      write_number(index, number);
    }
  }
  return index;
}

void PackedStore::write_out() {
  const std::string index = index_bytes();
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.layout = kPackedLayout;
  header.index_offset = new_file_->size();
  header.index_bytes = index.size();
  header.file_bytes = header.index_offset + header.index_bytes;
  header.index_checksum = checksum(reinterpret_cast<const uint8_t*>(index.data()), index.size());
  new_file_->write(header.index_offset, index.data(), index.size());
  new_file_->write(0, &header, sizeof(header));
  new_file_->publish();
}

void PackedStore::publish(const Log& log) {
  std::call_once(published_, [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (new_file_ == nullptr) return;
    try {
      write_out();
      log(false, "Packed weights were written to " + path_);
    } catch (const std::runtime_error& error) {
      give_up(error.what(), log);
    }
    new_file_.reset();
    failed_ = true;  // weights that are asked for from now on stay in memory
  });
}

}  // namespace edge
