#include "core/memory/memory_map.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/map_line.h"
#include "core/memory/memory_thread.h"

namespace replpage {
namespace {

std::string hexadecimal_range(uint64_t start, uint64_t end, const char* prefix) {
  char text[64];
  std::snprintf(text, sizeof text, "%s%lx-%s%lx", prefix, start, prefix, end);
  return text;
}

const KernelMounts& kernel_mounts() {
  static const KernelMounts mounts = [] {
    UniqueFd probe(::memfd_create("replpage-probe", MFD_CLOEXEC));
    struct stat status {};
    if (!probe.valid() || ::fstat(probe.get(), &status) != 0) {
      throw SysError::from_errno("create a memory file");
    }
    return KernelMounts{status.st_dev};
  }();
  return mounts;
}

// Builds the list line by line. `known` is walked along with it, since both ascend.
class MapReader {
 public:
  MapReader(pid_t pid, const std::vector<MappingImage>& known, bool with_flags, Refusals* refusals)
      : pid_(pid), known_(known), with_flags_(with_flags), refusals_(refusals) {}

  void read(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      size_t end = text.find('\n', at);
      if (end == std::string_view::npos) end = text.size();
      take_line(text.substr(at, end - at));
      at = end + 1;
    }
    finish_mapping();
  }

  std::vector<MappingImage> take() { return std::move(mappings_); }

 private:
  void take_line(std::string_view text) {
    // Attribute lines of smaps begin with a capital letter, mappings with a hexadecimal digit.
    if (text.empty()) return;
    if (with_flags_ && text.front() >= 'A' && text.front() <= 'Z') {
      take_attribute(text);
      return;
    }
    const auto line = parse_map_line(text);
    if (!line) throw SysError("understand the memory map", EPROTO, on_pid(pid_));
    finish_mapping();
    current_ = MappingImage();
    open_ = true;
    refusal_ = classify_mapping(*line, kernel_mounts(), current_);
    if (with_flags_) {
      check_regular_file();
    } else {
      take_known_attributes();
    }
  }

  void take_attribute(std::string_view text) {
    constexpr std::string_view kFlags = "VmFlags:";
    constexpr std::string_view kKey = "ProtectionKey:";
    if (text.starts_with(kFlags)) {
      const auto refusal = apply_vm_flags(text.substr(kFlags.size()), current_);
      if (!refusal_) refusal_ = refusal;
    } else if (text.starts_with(kKey)) {
      text.remove_prefix(std::min(text.find_first_not_of(" \t", kKey.size()), text.size()));
      std::from_chars(text.data(), text.data() + text.size(), current_.protection_key);
    }
  }

  // A mapping that grew, shrank or was joined with a new neighbour keeps what it had.
  void take_known_attributes() {
    while (next_known_ < known_.size() && known_[next_known_].end <= current_.start) ++next_known_;
    if (next_known_ == known_.size()) return;
    const MappingImage& before = known_[next_known_];
    if (before.start >= current_.end || before.kind != current_.kind) return;
    current_.flags |= before.flags;
    current_.protection_key = before.protection_key;
  }

  // A device node need not be below /dev.
  void check_regular_file() {
    const bool file =
        current_.kind == MappingKind::kFilePrivate || current_.kind == MappingKind::kFileShared;
    if (!file || refusal_) return;
    const std::string link = "/proc/" + std::to_string(pid_) + "/map_files/" +
                             hexadecimal_range(current_.start, current_.end, "");
    struct stat status {};
    if (::stat(link.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      refusal_ = {"device mapping", "memory of a device cannot be replicated"};
    }
  }

  void finish_mapping() {
    if (!open_) return;
    open_ = false;
    if (refusal_) {
      refuse();
    } else if (!join_with_last()) {
      mappings_.push_back(std::move(current_));
    }
  }

  // The kernel keeps neighbours apart for reasons that a replica does not share (different
  // anon_vma, userfaultfd); joined, the list does not change when those reasons come and go. Lines
  // of files stay apart: /proc/PID/map_files has a name for each.
  bool join_with_last() {
    if (mappings_.empty() || current_.kind != MappingKind::kAnonymous) return false;
    MappingImage& last = mappings_.back();
    if (last.end != current_.start || last.kind != current_.kind || last.prot != current_.prot ||
        last.flags != current_.flags || last.protection_key != current_.protection_key ||
        last.anon_name != current_.anon_name) {
      return false;
    }
    last.end = current_.end;
    return true;
  }

  void refuse() {
    if (refusals_ == nullptr) {
      throw SysError(std::string("replicate ") + refusal_->kind, EOPNOTSUPP,
                     at_address(pid_, current_.start));
    }
    std::string object = "mapping " + hexadecimal_range(current_.start, current_.end, "0x");
    if (!current_.path.empty()) object += " (" + current_.path + ")";
    refusals_->push_back(
        {.pid = pid_, .object = std::move(object), .kind = refusal_->kind, .why = refusal_->why});
  }

  pid_t pid_;
  const std::vector<MappingImage>& known_;
  bool with_flags_;
  Refusals* refusals_;
  size_t next_known_ = 0;
  bool open_ = false;
  MappingImage current_;
  std::optional<MapRefusal> refusal_;
  std::vector<MappingImage> mappings_;
};

}  // namespace

std::optional<std::vector<MappingImage>> read_memory_map(pid_t pid,
                                                         const std::vector<MappingImage>& known,
                                                         bool with_flags, Refusals* refusals) {
  const char* name = with_flags ? "smaps" : "maps";
  auto text = read_proc(thread_file(pid, pid, name));
  if (!text || text->empty()) {  // the first thread has ended, or the whole process
    const auto tid = memory_thread(pid);
    if (tid) text = read_proc(thread_file(pid, *tid, name));
    if (!tid || !text || text->empty()) return std::nullopt;
  }
  MapReader reader(pid, known, with_flags, refusals);
  reader.read(*text);
  return reader.take();
}

}  // namespace replpage
