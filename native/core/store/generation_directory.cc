#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "core/store/store_directory.h"
#include "core/store/store_files.h"
#include "core/store/store_format.h"

namespace replpage {
namespace {

constexpr const char* kOwnerName = "owner";
constexpr uint64_t kOwnerMagic = 0x314E4547'4C504552;  // "REPLGEN1"

// Who may write in a generation's directory.
struct OwnerMark {
  uint64_t magic = kOwnerMagic;
  uint32_t version = kStoreVersion;
  uint32_t reserved = 0;
  uint64_t group_id = 0;
  uint64_t generation = 0;
  uint64_t writer = 0;
  uint32_t padding = 0;
  uint32_t crc = 0;
};
static_assert(sizeof(OwnerMark) == 48 && offsetof(OwnerMark, crc) == 44);

std::optional<uint64_t> number_after(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  // A leading zero would give one number two names.
  if (error != std::errc{} || end != name.data() + name.size() ||
      (name.size() > 1 && name[0] == '0')) {
    return std::nullopt;
  }
  return number;
}

std::vector<std::string> names_in(int directory, const std::string& path) {
  see_changes(directory);
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) throw_store_error("open", path);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(copy), ::closedir);
  if (!stream) {
    ::close(copy);
    throw_store_error("read", path);
  }
  std::vector<std::string> names;
  for (errno = 0; const dirent* entry = ::readdir(stream.get()); errno = 0) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  if (errno != 0) throw_store_error("read", path);
  return names;
}

UniqueFd open_folder(int parent, const std::string& name) {
  return UniqueFd(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

// A directory that is there already is as good: who may write in it is told by its mark alone.
// Invalid: somebody else has removed one on the way.
UniqueFd make_folder(int parent, const std::string& name, const std::string& path) {
  const bool made = ::mkdirat(parent, name.c_str(), 0700) == 0;
  if (!made && errno != EEXIST && errno != ENOENT) throw_store_error("make the directory", path);
  UniqueFd folder = open_folder(parent, name);
  if (!folder.valid() && errno != ENOENT) throw_store_error("open the directory", path);
  if (made && ::fsync(parent) != 0) throw_store_error("fsync", path);
  return folder;
}

std::string group_folder(const GenerationName& name) { return hex16(name.group_id); }
std::string generation_folder(const GenerationName& name) {
  return "G" + std::to_string(name.generation);
}

UniqueFd make_folders(int store, const std::string& path, const GenerationName& name) {
  for (int attempt = 0; attempt < 16; ++attempt) {
    const UniqueFd named = make_folder(store, name.group, path);
    if (!named.valid()) continue;
    const UniqueFd group = make_folder(named.get(), group_folder(name), path);
    if (!group.valid()) continue;
    UniqueFd generation = make_folder(group.get(), generation_folder(name), path);
    if (generation.valid()) return generation;
  }
  throw store_error("make a directory in", path, ENOENT);
}

std::optional<OwnerMark> read_owner(int generation, const std::string& path) {
  const std::string file = path + "/" + kOwnerName;
  const auto text = read_small_file(generation, kOwnerName, file, 256);
  if (!text) return std::nullopt;
  OwnerMark mark;
  if (text->size() != sizeof mark) throw StoreDamaged(file, 0, "it has a wrong length");
  std::memcpy(&mark, text->data(), sizeof mark);
  if (mark.magic != kOwnerMagic || !header_intact(mark)) {
    throw StoreDamaged(file, 0, "this is no mark of a writer");
  }
  return mark;
}

void write_mark(const UniqueFd& file, const OwnerMark& mark, const std::string& path) {
  if (!file.valid()) throw_store_error("make a file in", path);
  if (::write(file.get(), &mark, sizeof mark) != sizeof mark || ::fsync(file.get()) != 0) {
    throw_store_error("write to", path);
  }
}

// Links the finished mark to its name: that happens once, whatever a server answers twice.
void claim(int generation, const std::string& path, const OwnerMark& mark) {
  uint64_t number = 0;
  (void)!::getrandom(&number, sizeof number, 0);
  const std::string fresh = std::string(kOwnerName) + "-" + hex16(number);
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  try {
    write_mark(UniqueFd(::openat(generation, fresh.c_str(), kFlags, 0600)), mark, path);
    if (::linkat(generation, fresh.c_str(), generation, kOwnerName, 0) != 0 && errno != EEXIST) {
      // A file system without links.
      const UniqueFd file(::openat(generation, kOwnerName, kFlags, 0600));
      if (file.valid() || errno != EEXIST) write_mark(file, mark, path);
    }
  } catch (...) {
    ::unlinkat(generation, fresh.c_str(), 0);
    throw;
  }
  ::unlinkat(generation, fresh.c_str(), 0);
  if (::fsync(generation) != 0) throw_store_error("fsync", path);
}

[[noreturn]] void refuse_generation(const std::string& path) {
  throw StoreError(StoreFailure::kUnusable,
                   "page store: " + path + " is there already, written by another", EEXIST);
}

bool owner_file(const std::string& name) {
  return name == kOwnerName || name.starts_with(std::string(kOwnerName) + "-");
}

}  // namespace

std::string generation_path(const GenerationName& name) {
  const auto letter = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  };
  const auto allowed = [&](char c) { return letter(c) || c == '.' || c == '_' || c == '-'; };
  const std::string& group = name.group;
  if (group.empty() || group.size() > 63 || !letter(group[0]) ||
      !std::all_of(group.begin(), group.end(), allowed)) {
    throw StoreError(StoreFailure::kUnusable,
                     "page store: " + group + " is no name for a directory");
  }
  return group + "/" + group_folder(name) + "/" + generation_folder(name);
}

UniqueFd make_generation(int store, const std::string& path, const GenerationName& name,
                         uint64_t writer, bool again) {
  const std::string full = path + "/" + generation_path(name);
  see_changes(store);
  UniqueFd generation = make_folders(store, full, name);
  std::optional<OwnerMark> owner = read_owner(generation.get(), full);
  const bool was_there = owner.has_value();
  if (!owner) {
    if (!list_segments(generation.get(), full).empty()) refuse_generation(full);
    OwnerMark mark{.group_id = name.group_id, .generation = name.generation, .writer = writer};
    seal_header(mark);
    claim(generation.get(), full, mark);
    owner = read_owner(generation.get(), full);
  }
  if (!owner || owner->version != kStoreVersion || owner->group_id != name.group_id ||
      owner->generation != name.generation || owner->writer != writer || (was_there && !again)) {
    refuse_generation(full);
  }
  return generation;
}

UniqueFd open_generation(int store, const std::string& path, const GenerationName& name) {
  const std::string relative = generation_path(name);
  see_changes(store);
  const UniqueFd named = open_folder(store, name.group);
  if (named.valid()) {
    see_changes(named.get());
    const UniqueFd group = open_folder(named.get(), group_folder(name));
    if (group.valid()) {
      see_changes(group.get());
      UniqueFd generation = open_folder(group.get(), generation_folder(name));
      if (generation.valid()) return generation;
    }
  }
  throw_store_error("open the directory", path + "/" + relative);
}

std::string segment_file_name(uint32_t number) { return "segment-" + std::to_string(number); }

std::vector<SegmentFile> list_segments(int generation, const std::string& path) {
  std::vector<SegmentFile> segments;
  for (const std::string& name : names_in(generation, path)) {
    const auto number = number_after(name, "segment-");
    if (!number || *number > kSegmentNumberMax) continue;
    struct stat status {};
    if (::fstatat(generation, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) continue;
      throw_store_error("stat", path + "/" + name);
    }
    if (!S_ISREG(status.st_mode)) continue;
    segments.push_back(
        {.number = static_cast<uint32_t>(*number), .bytes = static_cast<uint64_t>(status.st_size)});
  }
  std::sort(segments.begin(), segments.end(),
            [](const SegmentFile& a, const SegmentFile& b) { return a.number < b.number; });
  return segments;
}

std::vector<uint64_t> list_generations(int store, const std::string& path,
                                       const GenerationName& name) {
  const std::string full = path + "/" + generation_path(name);
  const UniqueFd named = open_folder(store, name.group);
  const UniqueFd group = named.valid() ? open_folder(named.get(), group_folder(name)) : UniqueFd();
  if (!group.valid()) {
    if (errno == ENOENT) return {};
    throw_store_error("open the directory above", full);
  }
  std::vector<uint64_t> generations;
  for (const std::string& entry : names_in(group.get(), full)) {
    if (const auto number = number_after(entry, "G")) generations.push_back(*number);
  }
  std::sort(generations.begin(), generations.end());
  return generations;
}

void remove_segment(int generation, const std::string& path, uint32_t number) {
  const std::string name = segment_file_name(number);
  if (::unlinkat(generation, name.c_str(), 0) != 0 && errno != ENOENT) {
    throw_store_error("remove", path + "/" + name);
  }
}

void remove_generation(int store, const std::string& path, const GenerationName& name) {
  const std::string full = path + "/" + generation_path(name);
  see_changes(store);
  const UniqueFd named = open_folder(store, name.group);
  const UniqueFd group = named.valid() ? open_folder(named.get(), group_folder(name)) : UniqueFd();
  const UniqueFd generation =
      group.valid() ? open_folder(group.get(), generation_folder(name)) : UniqueFd();
  if (!generation.valid()) {
    if (errno == ENOENT) return;
    throw_store_error("open the directory", full);
  }
  // The mark goes last: a directory that is half removed is still nobody else's.
  std::vector<std::string> names = names_in(generation.get(), full);
  std::stable_partition(names.begin(), names.end(),
                        [](const std::string& entry) { return entry != kOwnerName; });
  for (const std::string& entry : names) {
    const bool ours = number_after(entry, "segment-").has_value() || owner_file(entry);
    if (ours && ::unlinkat(generation.get(), entry.c_str(), 0) != 0 && errno != ENOENT) {
      throw_store_error("remove", full + "/" + entry);
    }
  }
  if (::unlinkat(group.get(), generation_folder(name).c_str(), AT_REMOVEDIR) != 0 &&
      errno != ENOENT) {
    throw_store_error("remove", full);
  }
  // Others may have theirs beside it.
  if (::unlinkat(named.get(), group_folder(name).c_str(), AT_REMOVEDIR) == 0) {
    ::unlinkat(store, name.group.c_str(), AT_REMOVEDIR);
  }
}

}  // namespace replpage
