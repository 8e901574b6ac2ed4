#include "core/store/checkpoint_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
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

// The manifest goes first: what is left without one is no checkpoint.
void remove_directory(int named, const std::string& name) {
  const UniqueFd folder = open_folder(named, name);
  if (!folder.valid()) return;
  ::unlinkat(folder.get(), kManifestName, 0);
  ::unlinkat(folder.get(), kFreshName, 0);
  ::fsync(folder.get());
  for (const SegmentFile& segment : list_segments(folder.get(), name)) {
    ::unlinkat(folder.get(), segment_file_name(segment.number).c_str(), 0);
  }
  ::unlinkat(named, name.c_str(), AT_REMOVEDIR);
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
      remove_directory(named.get(), name);
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
    remove_directory(named.get(), kPrefix + other.text);
  }
}

FoundCheckpoint find_checkpoint(int store, const std::string& path, const std::string& group,
                                const std::string& id, const StoreKey* key) {
  const std::string full = path + "/" + group;
  const UniqueFd named = open_named(store, path, group);
  for (const Id& known : list_ids(named.get(), full)) {
    if (!id.empty() && known.text != id) continue;
    UniqueFd folder = open_folder(named.get(), kPrefix + known.text);
    if (!folder.valid()) continue;
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
