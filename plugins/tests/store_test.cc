// The packed weights' file: what is kept, what is refused, and what a full disk, a crash or another process do to it.
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "../edge_plugins/native/packed_store.h"
#include "check.h"

namespace edge::test {
namespace {

class Folder {
 public:
  Folder() {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~Folder() {
    for (const std::string& name : names()) unlink((path_ + "/" + name).c_str());
    rmdir(path_.c_str());
  }
  std::string file() const { return path_ + "/weights.[1].pack"; }  // with characters that patterns know
  std::string path() const { return path_; }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    DIR* folder = opendir(path_.c_str());
    while (const dirent* entry = readdir(folder)) {
      if (entry->d_name[0] != '.') found.emplace_back(entry->d_name);
    }
    closedir(folder);
    return found;
  }

 private:
  std::string path_ = "/tmp/edge_store_XXXXXX";
};

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void put(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

// The model of these tests: two dense int4 matrices and three float experts.
struct Model {
  Model() {
    PackedRequest dense;
    dense.shape.format = Format::kInt4;
    dense.shape.in = 64;
    dense.shape.out = 70;
    dense.shape.block = 32;
    dense.weight = nibbles.data();
    dense.scales = scales.data();
    for (const char* name : {"first", "second"}) {
      dense.name = name;
      requests.push_back(dense);
    }
    PackedRequest experts;
    experts.name = "experts";
    experts.count = 3;
    experts.shape.in = 10;
    experts.shape.out = 3;
    experts.weight = floats.data();
    requests.push_back(experts);
  }

  std::vector<uint8_t> nibbles = std::vector<uint8_t>(64 * 70 / 2, 0x7a);
  Floats scales = Floats::uniform(2 * 70, 0.01f, 0.1f), floats = Floats::normal(3 * 10 * 3);
  std::vector<PackedRequest> requests;
};

struct Session {
  std::vector<PackedWeight> weights;
  std::vector<std::string> warnings;
};

// Asks for all weights and publishes, as one session does.
Session load(const Model& model, const std::string& path, const std::string& key = "key") {
  Session session;
  const auto log = [&](bool warning, const std::string& message) {
    if (warning) session.warnings.push_back(message);
  };
  PackedStore store(path, key);
  for (const PackedRequest& request : model.requests) session.weights.push_back(store.get(request, log));
  store.publish(log);
  store.publish(log);
  return session;
}

void check_weights(const Model& model, const Session& session, const std::string& what) {
  bool same = true;
  for (size_t i = 0; i < model.requests.size(); ++i) {
    const PackedRequest& request = model.requests[i];
    const PackedWeight& weight = session.weights[i];
    same = same && static_cast<int64_t>(weight.matrices.size()) == request.count;
    for (size_t m = 0; same && m < weight.matrices.size(); ++m) {
      const PackedMatrix& found = weight.matrices[m];
      same = reinterpret_cast<uintptr_t>(found.values) % 64 == 0 && found.in == request.shape.in;
      for (int64_t at = 0; same && at < found.in * found.out; ++at) {
        const double want =
            request.scales == nullptr
                ? static_cast<const float*>(request.weight)[static_cast<int64_t>(m) * 30 + at]
                : (at % 2 == 0 ? -6 : 7) * static_cast<double>(request.scales[at / 70 / 32 * 70 + at % 70]);
        same = reference::weight_at(found, at / found.out, at % found.out) == want;
      }
    }
  }
  check(same, what + ": the weights are right");
}

bool is_mapped(const Session& session, const std::string& path) {
  char line[512];
  bool found = false;
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  while (std::fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long begin = 0, end = 0;
    const auto at = reinterpret_cast<unsigned long>(session.weights[0].matrices[0].values);
    if (std::sscanf(line, "%lx-%lx", &begin, &end) == 2 && begin <= at && at < end) {
      found = std::string(line).find(path) != std::string::npos;
    }
  }
  std::fclose(maps);
  return found;
}

// Runs f in a process of its own; its exit status, or minus the signal that ended it.
int in_child(const std::function<int()>& f) {
  const pid_t child = fork();
  if (child == 0) _exit(f());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void test_kept(const Model& model) {
  const Folder folder;
  check_weights(model, load(model, ""), "in memory");
  check_weights(model, load(model, folder.file()), "made");
  check(folder.names().size() == 1, "one file is left");
  struct stat before {
  }, after{};
  stat(folder.file().c_str(), &before);
  const Session again = load(model, folder.file());
  check_weights(model, again, "mapped");
  check(is_mapped(again, folder.file()), "the second session maps the file");
  stat(folder.file().c_str(), &after);
  check(before.st_ino == after.st_ino, "and leaves it as it is");
  PackedStore unpublished(folder.file() + "x", "key");
  unpublished.get(model.requests[0], [](bool, const std::string&) {});
}

// Every kind of file that must not be trusted is replaced by a right one, without a warning.
void test_mistrusted(const Model& model) {
  const Folder folder;
  load(model, folder.file());
  const std::string whole = contents(folder.file());
  std::vector<std::pair<std::string, std::string>> wrong = {{"empty", ""}, {"foreign", std::string(5000, 'x')}};
  for (const size_t kept : {size_t{10}, size_t{64}, size_t{1000}, whole.size() - 200, whole.size() - 1}) {
    wrong.emplace_back("cut to " + std::to_string(kept), whole.substr(0, kept));
  }
  wrong.emplace_back("longer", whole + "x");
  for (const size_t at : {size_t{0}, size_t{8}, size_t{16}, size_t{24}, size_t{31}, size_t{32}, size_t{40}, size_t{47},
                          whole.size() - 1, whole.size() - 9, whole.size() - 60}) {
    std::string flipped = whole;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x41);
    wrong.emplace_back("flipped at " + std::to_string(at), flipped);
  }
  for (const auto& [what, bytes] : wrong) {
    put(folder.file(), bytes);
    const Session session = load(model, folder.file());
    check_weights(model, session, what);
    check(session.warnings.empty(), what + ": no warning");
    check(contents(folder.file()) == whole, what + ": made anew");
  }
  check_weights(model, load(model, folder.file(), "other key"), "another key");
  check(contents(folder.file()) != whole, "another key: made anew");
  check(folder.names().size() == 1, "nothing else is left");
}

// A file of the same key that lacks a weight, or has it in another shape, is completed.
void test_completed(const Model& model) {
  const Folder folder;
  Model less = model;  // of the same arrays
  less.requests.pop_back();
  less.requests[0].shape.block = 64;
  load(less, folder.file());
  check_weights(model, load(model, folder.file()), "completed");
  const Session again = load(model, folder.file());
  check_weights(model, again, "completed, then mapped");
  check(is_mapped(again, folder.file()), "the completed file is mapped");
}

// How many checks fail where no file may be larger than `room` bytes.
int load_with_room(const Model& model, const std::string& path, rlim_t room) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{room, room};
  setrlimit(RLIMIT_FSIZE, &limit);
  const int failed = count().failed;
  const Session session = load(model, path);
  check_weights(model, session, "full disk");
  check(session.warnings.size() == 1, "full disk: one warning");
  return count().failed - failed;
}

void test_no_room(const Model& model) {
  const Folder folder;
  const Session nowhere = load(model, "/proc/no/such/folder/weights");
  check_weights(model, nowhere, "no folder");
  check(nowhere.warnings.size() == 1, "no folder: one warning");
  for (const rlim_t room : {0, 64, 1000, 3000, 4096, 6000}) {
    check(in_child([&] { return load_with_room(model, folder.file(), room); }) == 0, "a full disk");
    check(folder.names().empty(), "a full disk: nothing is left");
  }
  const Folder other;
  Model first = model;
  std::swap(first.requests[0], first.requests[1]);
  first.requests.resize(1);
  load(first, other.file());
  for (const rlim_t room : {1000, 3000, 4096, 6000}) {
    check(in_child([&] { return load_with_room(model, other.file(), room); }) == 0,
          "a disk too full to complete a file");
    check(other.names().size() == 1, "a disk too full to complete a file: nothing else is left");
  }
  const int barred = in_child([&] {
    chmod(folder.path().c_str(), 0555);
    if (geteuid() == 0 && setuid(65534) != 0) return 1;
    return load(model, folder.file()).warnings.size() == 1 ? 0 : 1;
  });
  chmod(folder.path().c_str(), 0755);
  check(barred == 0, "a read-only folder");
}

void test_crash(const Model& model) {
  const Folder folder;
  const int killed = in_child([&] {
    PackedStore store(folder.file(), "key");
    store.get(model.requests[0], [](bool, const std::string&) {});
    return raise(SIGKILL);
  });
  check(killed == -SIGKILL && folder.names().size() == 1, "a killed process leaves its unfinished file");
  check(contents(folder.file()).empty(), "but not under the name");
  check_weights(model, load(model, folder.file()), "after a crash");
  check(folder.names().size() == 1, "the leftover is gone");
}

void test_crowd(const Model& model) {
  const Folder folder;
  std::vector<pid_t> children;
  for (int i = 0; i < 6; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      const int failed = count().failed;
      for (int round = 0; round < 20; ++round) {
        const Session session = load(model, folder.file(), round % 5 == 4 ? "other" : "key");
        check_weights(model, session, "crowd");
        check(session.warnings.empty(), "crowd: no warning");
      }
      _exit(count().failed - failed);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    check(status == 0, "one of several processes at once");
  }
  check(folder.names().size() == 1, "several processes leave one file");
}

}  // namespace

void test_packed_store() {
  const Model model;
  test_kept(model);
  test_mistrusted(model);
  test_completed(model);
  test_no_room(model);
  test_crash(model);
  test_crowd(model);
}

}  // namespace edge::test
