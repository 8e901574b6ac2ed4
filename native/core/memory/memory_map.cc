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
  enum class Flags : uint8_t { kKnown, kAttributeLines, kBits };
  MapReader(pid_t pid, Flags flags, Refusals* refusals)
      : pid_(pid),
        flags_(flags),
        look_at_files_(flags == Flags::kAttributeLines),
        refusals_(refusals) {}
  void set_known(std::span<const MappingImage> known) { known_ = known; }
  void set_bits(std::span<const VmBits> bits, bool look_at_files) {
    bits_ = bits;
    look_at_files_ = look_at_files;
  }

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
  // False when a line has no bits.
  [[nodiscard]] bool has_all_flags() const { return has_all_flags_; }

 private:
  void take_line(std::string_view text) {
    // Attribute lines of smaps begin with a capital letter, mappings with a hexadecimal digit.
    if (text.empty()) return;
    if (flags_ == Flags::kAttributeLines && text.front() >= 'A' && text.front() <= 'Z') {
      take_attribute(text);
      return;
    }
    const auto line = parse_map_line(text);
    if (!line) throw SysError("understand the memory map", EPROTO, on_pid(pid_));
    finish_mapping();
    current_ = MappingImage();
    open_ = true;
    refusal_ = classify_mapping(*line, kernel_mounts(), current_);
    if (flags_ == Flags::kKnown) take_known_attributes();
    if (flags_ == Flags::kBits) take_bits();
    if (look_at_files_) check_regular_file();
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

  void take_bits() {
    if (current_.kind == MappingKind::kVsyscall) return;  // belongs to no process
    while (!bits_.empty() && bits_.front().start < current_.start) bits_ = bits_.subspan(1);
    if (bits_.empty() || bits_.front().start != current_.start ||
        bits_.front().end != current_.end) {
      has_all_flags_ = false;
      return;
    }
    const auto refusal = apply_vm_bits(bits_.front().flags, current_);
    if (!refusal_) refusal_ = refusal;
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
  std::span<const MappingImage> known_;
  std::span<const VmBits> bits_;
  Flags flags_;
  bool look_at_files_;
  bool has_all_flags_ = true;
  Refusals* refusals_;
  size_t next_known_ = 0;
  bool open_ = false;
  MappingImage current_;
  std::optional<MapRefusal> refusal_;
  std::vector<MappingImage> mappings_;
};

std::optional<std::string> read_map_file(pid_t pid, const char* name) {
  auto text = read_proc(thread_file(pid, pid, name));
  if (!text || text->empty()) {  // the first thread has ended, or the whole process
    const auto tid = memory_thread(pid);
    if (tid) text = read_proc(thread_file(pid, *tid, name));
    if (!tid || !text || text->empty()) return std::nullopt;
  }
  return text;
}

}  // namespace

std::optional<std::vector<MappingImage>> read_memory_map(pid_t pid,
                                                         const std::vector<MappingImage>& known,
                                                         bool with_flags, Refusals* refusals) {
  const auto text = read_map_file(pid, with_flags ? "smaps" : "maps");
  if (!text) return std::nullopt;
  using Flags = MapReader::Flags;
  MapReader reader(pid, with_flags ? Flags::kAttributeLines : Flags::kKnown, refusals);
  reader.set_known(known);
  reader.read(*text);
  return reader.take();
}

std::optional<std::vector<MappingImage>> read_memory_map(pid_t pid, std::span<const VmBits> bits,
                                                         bool look_at_files) {
  const auto text = read_map_file(pid, "maps");
  if (!text) return std::nullopt;
  MapReader reader(pid, MapReader::Flags::kBits, nullptr);
  reader.set_bits(bits, look_at_files);
  reader.read(*text);
  if (!reader.has_all_flags()) return std::nullopt;
  return reader.take();
}

}  // namespace replpage
