#include "core/store/store_directory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include "core/base/crc32c.h"
#include "core/store/store_files.h"
#include "core/store/store_format.h"

namespace replpage {
namespace {

constexpr const char* kMarkName = "replpage-store";

std::string mark_text(uint32_t version) {
  const std::string text = "replpage-store " + std::to_string(version);
  char sum[16];
  std::snprintf(sum, sizeof sum, " %08x\n",
                crc32c({reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  return text + sum;
}

std::string fresh_name(const std::string& prefix) {
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) {
    throw_store_error("getrandom for", prefix);
  }
  return "." + prefix + "-" + hex16(number);
}

void check_mark(const std::string& path, const std::string& text) {
  if (text == mark_text(kStoreVersion)) return;
  unsigned version = 0;
  if (std::sscanf(text.c_str(), "replpage-store %9u ", &version) == 1 &&
      text == mark_text(version)) {
    throw StoreError(StoreFailure::kUnusable, "page store: " + path + " has version " +
                                                  std::to_string(version) + ", known is " +
                                                  std::to_string(kStoreVersion));
  }
  throw StoreDamaged(path, 0, "this is no mark of a page store");
}

// By rename: nobody ever sees half of it. Whoever else makes one meanwhile makes the same.
void make_mark(int store, const std::string& path) {
  const std::string fresh = fresh_name(kMarkName);
  const std::string text = mark_text(kStoreVersion);
  try {
    const UniqueFd file(
        ::openat(store, fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!file.valid()) throw_store_error("make a file in", path);
    if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
        ::fsync(file.get()) != 0) {
      throw_store_error("write to", path);
    }
    if (::renameat(store, fresh.c_str(), store, kMarkName) != 0) {
      throw_store_error("make the mark of", path);
    }
  } catch (...) {
    ::unlinkat(store, fresh.c_str(), 0);
    throw;
  }
  if (::fsync(store) != 0) throw_store_error("fsync", path);
}

bool is_volatile_overlay(int store) {
  struct statx status {};
  if (::statx(store, "", AT_EMPTY_PATH, STATX_MNT_ID, &status) != 0) return false;
  std::ifstream mounts("/proc/self/mountinfo");
  const std::string start = std::to_string(status.stx_mnt_id) + " ";
  for (std::string line; std::getline(mounts, line);) {
    if (!line.starts_with(start)) continue;
    // Written in the second way from Linux 6.18 on.
    line += ",";
    const size_t options = std::min(line.find(" - "), line.size());
    return line.find(",volatile,", options) != std::string::npos ||
           line.find(",fsync=volatile,", options) != std::string::npos;
  }
  return false;
}

void check_file_system(int store, const StoreOptions& options) {
  struct statfs status {};
  if (::fstatfs(store, &status) != 0) throw_store_error("statfs of", options.path);
  const char* kind = nullptr;
  switch (static_cast<uint32_t>(status.f_type)) {
    case TMPFS_MAGIC:
      kind = "a tmpfs";
      break;
    case RAMFS_MAGIC:
      kind = "a ramfs";
      break;
    case HUGETLBFS_MAGIC:
      kind = "a hugetlbfs";
      break;
    case PROC_SUPER_MAGIC:
    case SYSFS_MAGIC:
    case CGROUP_SUPER_MAGIC:
    case CGROUP2_SUPER_MAGIC:
      kind = "no file system for files";
      break;
    case OVERLAYFS_SUPER_MAGIC:
      if (is_volatile_overlay(store)) kind = "an overlay mounted as volatile";
      break;
    default:
      break;
  }
  if (kind == nullptr) return;
  const bool memory = std::strcmp(kind, "a tmpfs") == 0;
  if (memory && options.allow_memory_file_systems) return;
  throw StoreError(StoreFailure::kUnusable,
                   "page store: " + options.path + " is on " + kind +
                       ": what is written there does not survive the machine");
}

std::optional<std::string> read_mark(int store, const std::string& path) {
  return read_small_file(store, kMarkName, path + "/" + kMarkName, 256);
}

std::string probe_name(uint64_t nonce) { return "probe-" + hex16(nonce); }
std::string probe_text(uint64_t nonce) { return "replpage-probe " + hex16(nonce) + "\n"; }

void write_file(int store, const std::string& path, const std::string& name,
                const std::string& text) {
  const UniqueFd file(
      ::openat(store, name.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file.valid()) throw_store_error("make a file in", path);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::fsync(file.get()) != 0) {
    throw_store_error("write to", path);
  }
}

}  // namespace

UniqueFd open_store(const StoreOptions& options) {
  UniqueFd store(::open(options.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!store.valid()) throw_store_error("open the directory", options.path);
  check_file_system(store.get(), options);
  see_changes(store.get());
  std::optional<std::string> mark = read_mark(store.get(), options.path);
  if (!mark && options.writing) {
    make_mark(store.get(), options.path);
    mark = read_mark(store.get(), options.path);
  }
  if (!mark) {
    throw StoreError(StoreFailure::kGone, "page store: " + options.path + " is no page store");
  }
  check_mark(options.path + "/" + kMarkName, *mark);
  if (options.writing) {
    const std::string name = fresh_name("try");
    write_file(store.get(), options.path, name, "x");
    ::unlinkat(store.get(), name.c_str(), 0);
  }
  return store;
}

void write_probe(int store, const std::string& path, uint64_t nonce) {
  write_file(store, path, probe_name(nonce), probe_text(nonce));
  if (::fsync(store) != 0) throw_store_error("fsync", path);
}

bool check_probe(int store, const std::string& path, uint64_t nonce) {
  see_changes(store);
  const std::string name = probe_name(nonce);
  return read_small_file(store, name, path + "/" + name, 256) == probe_text(nonce);
}

void remove_probe(int store, uint64_t nonce) { ::unlinkat(store, probe_name(nonce).c_str(), 0); }

}  // namespace replpage
