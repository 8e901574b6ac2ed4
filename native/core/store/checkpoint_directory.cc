#include "core/store/checkpoint_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <map>
#include <memory>

#include "core/store/store_files.h"
#include "core/store/store_format.h"

namespace replpage {
namespace {

constexpr const char* kPrefix = "checkpoint-";
constexpr const char* kManifestName = "manifest";
constexpr const char* kFreshName = "manifest-new";
constexpr size_t kManifestFileBytesMax = 128 * 1024;
constexpr size_t kIdDigits = 16;

struct Id {
  std::string text;
  std::string group_id;
  uint64_t taken_ms = 0;
};

std::optional<Id> parse_id(const std::string& text) {
  const bool shaped = text.size() > kIdDigits + 1 && text.size() <= kIdDigits + 21 &&
                      text[kIdDigits] == '-' &&
                      text.find_first_not_of("0123456789abcdef") == kIdDigits;
  if (!shaped || text[kIdDigits + 1] == '0') return std::nullopt;
  Id id{.text = text, .group_id = text.substr(0, kIdDigits)};
  const char* first = text.data() + kIdDigits + 1;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(first, last, id.taken_ms);
  if (error != std::errc{} || end != last) return std::nullopt;
  return id;
}

UniqueFd open_folder(int parent, const std::string& name) {
  return UniqueFd(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

UniqueFd open_named(int store, const std::string& path, const std::string& group) {
  (void)generation_path({.group = group});  // throws when it is no name
  see_changes(store);
  UniqueFd named = open_folder(store, group);
  if (!named.valid()) throw_store_error("open the directory", path + "/" + group);
  return named;
}

// Newest first.
std::vector<Id> list_ids(int named, const std::string& path) {
  see_changes(named);
  const int copy = ::openat(named, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) throw_store_error("open", path);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy), ::closedir);
  if (!stream) {
    ::close(copy);
    throw_store_error("read", path);
  }
  std::vector<Id> ids;
  for (errno = 0; const dirent* entry = ::readdir(stream.get()); errno = 0) {
    const std::string name = entry->d_name;
    if (!name.starts_with(kPrefix)) continue;
    if (auto id = parse_id(name.substr(std::string(kPrefix).size()))) ids.push_back(*id);
  }
  if (errno != 0) throw_store_error("read", path);
  std::sort(ids.begin(), ids.end(),
            [](const Id& a, const Id& b) { return a.taken_ms > b.taken_ms; });
  return ids;
}

uint64_t wall_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
}

// What it has a name of, once for each segment: with how many names, and in how many checkpoints.
struct KeptSegment {
  uint64_t names = 0, in_checkpoints = 0, bytes = 0;
};
using KeptSegments = std::map<std::pair<dev_t, ino_t>, KeptSegment>;

void count_segments(int folder, const std::string& path, KeptSegments& kept) {
  for (const SegmentFile& segment : list_segments(folder, path)) {
    struct stat status {};
    const std::string name = segment_file_name(segment.number);
    if (::fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) continue;
    KeptSegment& one = kept[{status.st_dev, status.st_ino}];
    one.names = status.st_nlink;
    one.bytes = static_cast<uint64_t>(status.st_size);
    ++one.in_checkpoints;
  }
}

uint64_t bytes_of_nobody_else(const KeptSegments& kept) {
  uint64_t bytes = 0;
  for (const auto& [file, segment] : kept) {
    if (segment.names == segment.in_checkpoints) bytes += segment.bytes;
  }
  return bytes;
}

// Shared by whoever reads from it, alone for whoever removes it. A lock of this machine alone, and
// where a file system has none nothing tells.
bool lock_folder(int folder, int kind) {
  return ::flock(folder, kind | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

// The manifest goes first: what is left without one is no checkpoint. False: it is in use.
bool remove_directory(int named, const std::string& name) {
  const UniqueFd folder = open_folder(named, name);
  if (!folder.valid()) return true;
  if (!lock_folder(folder.get(), LOCK_EX)) return false;
  ::unlinkat(folder.get(), kManifestName, 0);
  ::unlinkat(folder.get(), kFreshName, 0);
  ::fsync(folder.get());
  for (const SegmentFile& segment : list_segments(folder.get(), name)) {
    ::unlinkat(folder.get(), segment_file_name(segment.number).c_str(), 0);
  }
  return ::unlinkat(named, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT;
}

// False: it is not there. Throws where it may not be removed.
bool check_removable(int named, const std::string& name, const std::string& path,
                     KeptSegments& freed) {
  const std::string full = path + "/" + name;
  const UniqueFd folder = open_folder(named, name);
  if (!folder.valid() && errno == ENOENT) return false;
  if (!folder.valid()) throw_store_error("open the directory", full);
  if (!lock_folder(folder.get(), LOCK_EX)) {
    throw StoreError(
        StoreFailure::kUnusable,
        "page store: " + full + " is in use: what was restored from it has not read all of it yet",
        EBUSY);
  }
  for (const char* at : {name.c_str(), "."}) {
    if (::faccessat(named, at, W_OK, AT_EACCESS) != 0) throw_store_error("remove", full);
  }
  count_segments(folder.get(), full, freed);
  return true;
}

uint64_t link_segments(int generation, int folder, const std::string& path,
                       const std::vector<uint32_t>& segments) {
  uint64_t bytes = 0;
  for (const uint32_t number : segments) {
    const std::string name = segment_file_name(number);
    struct stat status {};
    if (::linkat(generation, name.c_str(), folder, name.c_str(), 0) != 0 && errno != EEXIST) {
      const bool never = errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS;
      if (!never) throw_store_error("link a segment into", path);
      throw StoreError(StoreFailure::kUnusable,
                       "page store: " + path + " is on a file system without hard links", errno);
    }
    if (::fstatat(folder, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      throw_store_error("find a linked segment in", path);
    }
    bytes += static_cast<uint64_t>(status.st_size);
  }
  if (::fsync(folder) != 0) throw_store_error("fsync", path);
  return bytes;
}

// Linked when it is finished: that happens once, whatever a server answers twice.
void place_manifest(int folder, const std::string& path, std::span<const uint8_t> bytes) {
  const UniqueFd file(
      ::openat(folder, kFreshName, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file.valid()) throw_store_error("make a file in", path);
  if (::write(file.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) ||
      ::fsync(file.get()) != 0) {
    throw_store_error("write to", path);
  }
  if (::linkat(folder, kFreshName, folder, kManifestName, 0) != 0 && errno != EEXIST) {
    throw_store_error("place the manifest in", path);
  }
  ::unlinkat(folder, kFreshName, 0);
  if (::fsync(folder) != 0) throw_store_error("fsync", path);
}

}  // namespace

WrittenCheckpoint write_checkpoint(int store, const std::string& path, int generation,
                                   CheckpointManifest& manifest, const StoreKey* key) {
  const UniqueFd named = open_named(store, path, manifest.name);
  const std::string group_id = hex16(manifest.group_id);
  manifest.taken_ms = wall_ms();
  for (const Id& id : list_ids(named.get(), path)) {
    if (id.group_id == group_id) manifest.taken_ms = std::max(manifest.taken_ms, id.taken_ms + 1);
  }
  const std::string id = group_id + "-" + std::to_string(manifest.taken_ms);
  const std::string name = kPrefix + id;
  const std::string full = path + "/" + manifest.name + "/" + name;
  if (::mkdirat(named.get(), name.c_str(), 0700) != 0 && errno != EEXIST) {
    throw_store_error("make the directory", full);
  }
  try {
    const UniqueFd folder = open_folder(named.get(), name);
    if (!folder.valid()) throw_store_error("open the directory", full);
    const uint64_t bytes = link_segments(generation, folder.get(), full, manifest.segments);
    if (::fsync(named.get()) != 0) throw_store_error("fsync", full);
    place_manifest(folder.get(), full, seal_manifest(manifest, key));
    return {.id = id, .linked_bytes = bytes};
  } catch (...) {
    try {
      (void)remove_directory(named.get(), name);
    } catch (const StoreError&) {  // without a manifest it is nothing
    }
    throw;
  }
}

void remove_other_checkpoints(int store, const std::string& path, const std::string& group,
                              const std::string& id) {
  const UniqueFd named = open_named(store, path, group);
  for (const Id& other : list_ids(named.get(), path + "/" + group)) {
    if (other.text == id || other.group_id != id.substr(0, kIdDigits)) continue;
    (void)remove_directory(named.get(), kPrefix + other.text);
  }
}

RemovedCheckpoints remove_checkpoints(int store, const std::string& path, const std::string& group,
                                      const std::string& id) {
  const std::string full = path + "/" + group;
  const UniqueFd named = open_named(store, path, group);
  RemovedCheckpoints removed;
  KeptSegments freed;
  for (const Id& known : list_ids(named.get(), full)) {
    if (!id.empty() && known.text != id) continue;
    if (check_removable(named.get(), kPrefix + known.text, full, freed)) {
      removed.ids.push_back(known.text);
    }
  }
  if (removed.ids.empty()) {
    throw StoreError(StoreFailure::kGone, "page store: there is no " +
                                              (id.empty() ? "checkpoint" : "checkpoint " + id) +
                                              " in " + full);
  }
  for (const std::string& one : removed.ids) {
    if (remove_directory(named.get(), kPrefix + one)) continue;
    throw_store_error("remove", full + "/" + kPrefix + one);
  }
  if (::fsync(named.get()) != 0) throw_store_error("fsync", full);
  ::unlinkat(store, group.c_str(), AT_REMOVEDIR);  // where nothing else is in it
  removed.freed_bytes = bytes_of_nobody_else(freed);
  return removed;
}

uint64_t bytes_of_checkpoints(int store, const std::string& path, const std::string& group) {
  const UniqueFd named = open_folder(store, group);
  if (!named.valid()) return 0;
  KeptSegments kept;
  const std::string full = path + "/" + group;
  for (const Id& known : list_ids(named.get(), full)) {
    const UniqueFd folder = open_folder(named.get(), kPrefix + known.text);
    if (folder.valid()) count_segments(folder.get(), full, kept);
  }
  return bytes_of_nobody_else(kept);
}

FoundCheckpoint find_checkpoint(int store, const std::string& path, const std::string& group,
                                const std::string& id, const StoreKey* key) {
  const std::string full = path + "/" + group;
  const UniqueFd named = open_named(store, path, group);
  for (const Id& known : list_ids(named.get(), full)) {
    if (!id.empty() && known.text != id) continue;
    UniqueFd folder = open_folder(named.get(), kPrefix + known.text);
    if (!folder.valid()) continue;
    // As long as the directory is open, whoever has it then.
    if (!lock_folder(folder.get(), LOCK_SH)) continue;  // it is being removed
    see_changes(folder.get());
    const std::string file = full + "/" + kPrefix + known.text + "/" + kManifestName;
    const auto text = read_small_file(folder.get(), kManifestName, file, kManifestFileBytesMax);
    if (!text) continue;
    CheckpointManifest manifest =
        open_manifest({reinterpret_cast<const uint8_t*>(text->data()), text->size()}, key, file);
    if (hex16(manifest.group_id) != known.group_id || manifest.taken_ms != known.taken_ms) {
      throw StoreDamaged(file, 0, "it is the manifest of another checkpoint");
    }
    return {.id = known.text, .directory = std::move(folder), .manifest = std::move(manifest)};
  }
  throw StoreError(StoreFailure::kGone, "page store: there is no " +
                                            (id.empty() ? "checkpoint" : "checkpoint " + id) +
                                            " in " + full);
}

}  // namespace replpage
