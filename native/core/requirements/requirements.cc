#include "core/requirements/requirements.h"

#include <fcntl.h>
#include <linux/major.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>

#include "core/base/crc32c.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/memory_map.h"
#include "core/requirements/content_hash.h"
#include "core/requirements/file_facts.h"

namespace replpage {
namespace {

constexpr uint32_t kMagic = 0x51525052;  // "RPRQ"
constexpr uint32_t kVersion = 1;

struct Header {
  uint32_t magic = kMagic, version = kVersion, bytes = 0, crc = 0;
};

std::string proc_path(pid_t pid, const std::string& file) {
  return "/proc/" + std::to_string(pid) + "/" + file;
}

class Gatherer {
 public:
  Gatherer(Requirements& to, HashCache& cache) : to_(to), cache_(cache) {}

  void add_process(pid_t pid) {
    note_pid(pid);
    note_namespaces(pid);
    add_link(pid, "exe", FileUse::kExecutable);
    add_link(pid, "cwd", FileUse::kDirectory);
    add_link(pid, "root", FileUse::kDirectory);
    add_mappings(pid);
    add_descriptors(pid);
  }

  void finish() {
    to_.bound.assign(bound_.begin(), bound_.end());
    for (auto& [key, file] : files_) to_.files.push_back(std::move(file));
  }

 private:
  using Key = std::pair<std::string, FileUse>;

  // The pid that the program itself knows.
  void note_pid(pid_t pid) {
    const auto status = read_proc(proc_path(pid, "status"));
    const auto pids = status ? field_of(*status, "NSpid") : std::nullopt;
    if (!pids) return;
    const size_t last = pids->find_last_of("\t ");
    const std::string own(last == std::string_view::npos ? *pids : pids->substr(last + 1));
    to_.highest_pid = std::max<uint64_t>(to_.highest_pid, std::strtoull(own.c_str(), nullptr, 10));
    for (const int tid : numeric_entries(proc_path(pid, "task")).value_or(std::vector<int>())) {
      // Threads have numbers near their process's; the exact ones are the image's business.
      if (pids->find('\t') == std::string_view::npos) {
        to_.highest_pid = std::max<uint64_t>(to_.highest_pid, static_cast<uint64_t>(tid));
      }
    }
  }

  // Paths tell by themselves whether those of another mount namespace are to be had.
  void note_namespaces(pid_t pid) {
    for (const char* name : {"net", "ipc", "uts"}) {
      const auto theirs = read_link(proc_path(pid, std::string("ns/") + name));
      const auto ours = read_link(std::string("/proc/self/ns/") + name);
      if (theirs && theirs != ours) bound_.insert(std::string("namespace ") + name);
    }
  }

  // `at`: a link of /proc that leads to the very file, whatever its path names by now.
  // Null: it is known already, or gone.
  FileRequirement* add(const std::string& at, const std::string& path, FileUse use, bool written) {
    const auto [place, added] = files_.try_emplace({path, use});
    FileRequirement& file = place->second;
    file.written |= written;
    if (!added) return nullptr;
    struct stat status {};
    if (::stat(at.c_str(), &status) != 0) {
      files_.erase(place);
      return nullptr;
    }
    file.use = use;
    file.path = path;
    file.source = at;
    fill_file_facts(status, at, file);
    add_content(at, file);
    return &file;
  }

  // Data that is written is not compared: it lies where both machines reach it, or is refused.
  void add_content(const std::string& at, FileRequirement& file) {
    if ((file.type & S_IFMT) != S_IFREG) return;
    const bool code = file.use == FileUse::kExecutable || file.use == FileUse::kMapped;
    if (!code && (file.written || file.on_network || file.size > kComparedBytesMax)) return;
    const UniqueFd fd(::open(at.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) return;
    if (code) file.build_id = cache_.build_id(fd.get());
    const bool hashed = file.build_id.empty() && file.size <= kHashedBytesMax;
    if (hashed) file.sha256 = cache_.sha256(fd.get());
  }

  void add_link(pid_t pid, const char* name, FileUse use) {
    const std::string link = proc_path(pid, name);
    if (const auto target = read_link(link)) add(link, *target, use, false);
  }

  void add_mappings(pid_t pid) {
    const auto mappings = read_memory_map(pid, {}, false, nullptr);
    if (!mappings) return;
    to_.most_mappings = std::max<uint64_t>(to_.most_mappings, mappings->size());
    for (const MappingImage& mapping : *mappings) {
      to_.uses_vdso |= mapping.kind == MappingKind::kVdso;
      if (mapping.kind == MappingKind::kSysvShared) {
        bound_.insert("SysV shared memory segment " + std::to_string(mapping.shm_id));
      }
      const bool shared = mapping.kind == MappingKind::kFileShared;
      if (!shared && mapping.kind != MappingKind::kFilePrivate) continue;
      char link[96];
      std::snprintf(link, sizeof link, "map_files/%lx-%lx", mapping.start, mapping.end);
      const FileUse use = shared ? FileUse::kMappedShared : FileUse::kMapped;
      FileRequirement* const added =
          add(proc_path(pid, link), mapping.path, use, shared && (mapping.prot & PROT_WRITE) != 0);
      if (added == nullptr) continue;
      // As the image names it; stat(2) may say otherwise (overlay file systems).
      added->device = mapping.device;
      added->inode = mapping.inode;
    }
  }

  void add_descriptors(pid_t pid) {
    for (const int fd : numeric_entries(proc_path(pid, "fd")).value_or(std::vector<int>())) {
      to_.highest_descriptor =
          std::max<uint64_t>(to_.highest_descriptor, static_cast<uint64_t>(fd));
      const std::string link = proc_path(pid, "fd/" + std::to_string(fd));
      const auto target = read_link(link);
      // Others have no path: "pipe:[1]", "/memfd:name (deleted)".
      if (!target || !target->starts_with('/') || target->starts_with("/memfd:")) continue;
      struct stat status {};
      if (::stat(link.c_str(), &status) != 0 || S_ISSOCK(status.st_mode)) continue;
      if (S_ISCHR(status.st_mode) && is_terminal(status.st_rdev)) continue;
      add(link, *target, FileUse::kOpen, is_open_for_writing(pid, fd));
    }
  }

  // It leads outside, and to nowhere on another node.
  static bool is_terminal(dev_t device) {
    const unsigned number = major(device);
    return number == TTY_MAJOR || number == TTYAUX_MAJOR ||
           (number >= UNIX98_PTY_SLAVE_MAJOR &&
            number < UNIX98_PTY_SLAVE_MAJOR + UNIX98_PTY_MAJOR_COUNT);
  }

  static bool is_open_for_writing(pid_t pid, int fd) {
    const auto info = read_proc(proc_path(pid, "fdinfo/" + std::to_string(fd)));
    const auto flags = info ? field_of(*info, "flags") : std::nullopt;
    if (!flags) return true;
    const auto value = std::strtoul(std::string(*flags).c_str(), nullptr, 8);
    return (value & O_PATH) == 0 && (value & O_ACCMODE) != O_RDONLY;
  }

  Requirements& to_;
  HashCache& cache_;
  std::map<Key, FileRequirement> files_;
  std::set<std::string> bound_;
};

}  // namespace

HashCache::Key HashCache::key_of(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw SysError::from_errno("fstat");
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size = static_cast<uint64_t>(status.st_size),
          .changed_ns = status.st_ctim.tv_sec * 1'000'000'000 + status.st_ctim.tv_nsec};
}

Bytes HashCache::sha256(int fd) {
  if (hashes_.size() >= kKnownMax) hashes_.clear();
  const Key key = key_of(fd);
  const auto known = hashes_.find(key);
  return known != hashes_.end() ? known->second : hashes_[key] = sha256_of_file(fd);
}

Bytes HashCache::build_id(int fd) {
  if (build_ids_.size() >= kKnownMax) build_ids_.clear();
  const Key key = key_of(fd);
  const auto known = build_ids_.find(key);
  return known != build_ids_.end() ? known->second : build_ids_[key] = build_id_of(fd);
}

Requirements gather_requirements(std::span<const pid_t> pids, HashCache& cache) {
  Requirements requirements;
  requirements.machine = read_machine_facts();
  Gatherer gatherer(requirements, cache);
  for (const pid_t pid : pids) gatherer.add_process(pid);
  gatherer.finish();
  return requirements;
}

Bytes encode_requirements(Requirements& requirements) {
  Bytes body = encode(requirements);
  const Header header{.bytes = static_cast<uint32_t>(body.size()), .crc = crc32c(body)};
  const auto* start = reinterpret_cast<const uint8_t*>(&header);
  body.insert(body.begin(), start, start + sizeof header);
  return body;
}

Requirements decode_requirements(std::span<const uint8_t> bytes) {
  Header header;
  if (bytes.size() < sizeof header) throw FormatError("requirements are truncated");
  std::memcpy(&header, bytes.data(), sizeof header);
  bytes = bytes.subspan(sizeof header);
  if (header.magic != kMagic) throw FormatError("these are no requirements");
  if (header.version != kVersion) {
    throw FormatError("requirements have version " + std::to_string(header.version) +
                      ", and this program knows " + std::to_string(kVersion));
  }
  if (header.bytes != bytes.size() || header.crc != crc32c(bytes)) {
    throw FormatError("requirements are damaged");
  }
  auto requirements = decode<Requirements>(bytes);
  for (const FileRequirement& file : requirements.files) {
    const bool known = file.use >= FileUse::kExecutable && file.use <= FileUse::kDirectory;
    if (!known || file.path.find('\0') != std::string::npos) {
      throw FormatError("requirements have a file that cannot be");
    }
  }
  return requirements;
}

}  // namespace replpage
