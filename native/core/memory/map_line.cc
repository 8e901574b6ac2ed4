#include "core/memory/map_line.h"

#include <sys/mman.h>
#include <sys/sysmacros.h>

#include <array>
#include <charconv>
#include <utility>

namespace replpage {
namespace {

constexpr std::string_view kDeleted = " (deleted)";

bool take_number(std::string_view& text, uint64_t& value, int base) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

bool take_character(std::string_view& text, char wanted) {
  if (text.empty() || text.front() != wanted) return false;
  text.remove_prefix(1);
  return true;
}

// The kernel prints a newline of a name as \012 and nothing else escaped (seq_file_path).
std::string unescape(std::string_view name) {
  std::string text(name);
  for (size_t at = 0; (at = text.find("\\012", at)) != std::string::npos; ++at) {
    text.replace(at, 4, 1, '\n');
  }
  return text;
}

std::string_view without_deleted(std::string_view name) {
  if (name.ends_with(kDeleted)) name.remove_suffix(kDeleted.size());
  return name;
}

constexpr MapRefusal kHugeTlb = {"huge page mapping", "hugetlb memory is not supported"};
struct FlagEntry {
  std::string_view code;  // of VmFlags in smaps
  uint64_t bit;
  uint32_t flag;
};
constexpr std::array<FlagEntry, 12> kFlags = {{{"gd", kVmGrowsDown, kGrowsDown},
                                               {"hg", kVmHugePage, kHugePage},
                                               {"nh", kVmNoHugePage, kNoHugePage},
                                               {"dc", kVmDontCopy, kDontFork},
                                               {"dd", kVmDontDump, kDontDump},
                                               {"wf", kVmWipeOnFork, kWipeOnFork},
                                               {"lo", kVmLocked, kLocked},
                                               {"mg", kVmMergeable, kMergeable},
                                               {"nr", kVmNoReserve, kNoReserve},
                                               {"sr", kVmSequential, kSequential},
                                               {"rr", kVmRandom, kRandom},
                                               {"lf", kVmLockOnFault, kLockOnFault}}};

constexpr MapRefusal kSpecial = {"special mapping", "this mapping of the kernel is not supported"};

// Mappings of files that live on no visible mount.
std::optional<MapRefusal> refuse_by_name(std::string_view name) {
  using Entry = std::pair<std::string_view, MapRefusal>;
  static constexpr std::array<Entry, 8> kEntries = {{
      {"/[aio]", {"AIO ring", "asynchronous I/O contexts (io_setup) are not supported"}},
      {"anon_inode:[io_uring]", {"io_uring ring", "io_uring is not supported"}},
      {"anon_inode:[perf_event]", {"perf ring", "perf event buffers are not supported"}},
      {"anon_inode:", {"kernel object mapping", "this kind of descriptor cannot be mapped again"}},
      {"/anon_hugepage", kHugeTlb},
      {"/secretmem", {"secret memory", "memfd_secret memory cannot be read"}},
      {"/dmabuf:", {"DMA buffer", "device memory cannot be replicated"}},
      {"socket:", {"socket ring", "mapped packet sockets are not supported"}},
  }};
  for (const auto& [prefix, refusal] : kEntries) {
    if (name.starts_with(prefix)) return refusal;
  }
  return std::nullopt;
}

std::optional<MapRefusal> classify_bracket(std::string_view name, bool shared,
                                           MappingImage& image) {
  if (name == "[heap]") return std::nullopt;
  if (name == "[stack]") {
    image.flags |= kGrowsDown;
    return std::nullopt;
  }
  const bool anonymous = name.starts_with("[anon:");
  if (anonymous || name.starts_with("[anon_shmem:")) {
    const size_t from = name.find(':') + 1;
    image.anon_name = unescape(name.substr(from, name.size() - from - 1));
    if (shared) image.kind = MappingKind::kSharedObject;
    return std::nullopt;
  }
  if (name == "[vdso]") {
    image.kind = MappingKind::kVdso;
  } else if (name == "[vvar]" || name == "[vvar_vclock]") {
    image.kind = MappingKind::kVvar;
  } else if (name == "[vsyscall]") {
    image.kind = MappingKind::kVsyscall;
  } else {
    return kSpecial;
  }
  return std::nullopt;
}

// Memory files: memfd, shared anonymous memory, SysV segments. True when the line is one of them.
bool classify_memory_file(const MapLine& line, std::string_view name, MappingImage& image) {
  constexpr std::string_view kMemfd = "/memfd:";
  if (name.starts_with(kMemfd)) {
    image.kind = line.shared ? MappingKind::kSharedObject : MappingKind::kMemfdPrivate;
    image.path = unescape(name.substr(kMemfd.size()));
    return true;
  }
  if (name == "/dev/zero" && line.shared && line.name != name) {
    image.kind = MappingKind::kSharedObject;
    return true;
  }
  if (name.starts_with("/SYSV") && line.name != name) {
    image.kind = MappingKind::kSysvShared;
    image.shm_id = static_cast<int32_t>(line.inode);  // ipc/shm.c: "shmid reported as inode number"
    image.path = unescape(name);
    return true;
  }
  return false;
}

}  // namespace

std::optional<MapLine> parse_map_line(std::string_view text) {
  MapLine line;
  uint64_t major_number = 0;
  uint64_t minor_number = 0;
  if (!take_number(text, line.start, 16) || !take_character(text, '-') ||
      !take_number(text, line.end, 16) || !take_character(text, ' ') || text.size() < 5) {
    return std::nullopt;
  }
  line.read = text[0] == 'r';
  line.write = text[1] == 'w';
  line.execute = text[2] == 'x';
  line.shared = text[3] == 's';
  text.remove_prefix(4);
  if (!take_character(text, ' ') || !take_number(text, line.offset, 16) ||
      !take_character(text, ' ') || !take_number(text, major_number, 16) ||
      !take_character(text, ':') || !take_number(text, minor_number, 16) ||
      !take_character(text, ' ') || !take_number(text, line.inode, 10)) {
    return std::nullopt;
  }
  line.device = makedev(static_cast<unsigned>(major_number), static_cast<unsigned>(minor_number));
  const size_t name = text.find_first_not_of(' ');
  if (name != std::string_view::npos) line.name = text.substr(name);
  return line;
}

std::optional<MapRefusal> classify_mapping(const MapLine& line, const KernelMounts& mounts,
                                           MappingImage& image) {
  image.start = line.start;
  image.end = line.end;
  image.prot =
      (line.read ? PROT_READ : 0) | (line.write ? PROT_WRITE : 0) | (line.execute ? PROT_EXEC : 0);
  image.kind = MappingKind::kAnonymous;
  if (line.inode != 0) {
    image.offset = line.offset;
    image.device = line.device;
    image.inode = line.inode;
  }
  if (line.name.empty()) return std::nullopt;
  if (line.name.front() == '[') return classify_bracket(line.name, line.shared, image);

  const std::string_view name = without_deleted(line.name);
  if (const auto refusal = refuse_by_name(name)) return refusal;
  if (classify_memory_file(line, name, image)) {
    if (line.device != mounts.memory_files) return kHugeTlb;
    return std::nullopt;
  }
  if (line.name == "/dev/zero") {  // private: memory like any other; its file adds nothing
    image.offset = image.device = image.inode = 0;
    return std::nullopt;
  }
  image.kind = line.shared ? MappingKind::kFileShared : MappingKind::kFilePrivate;
  image.path = unescape(line.name);
  if (name.starts_with("/dev/") && !name.starts_with("/dev/shm/")) {
    return MapRefusal{"device mapping", "memory of a device cannot be replicated"};
  }
  return std::nullopt;
}

std::optional<MapRefusal> apply_vm_bits(uint64_t flags, MappingImage& image) {
  const bool vvar = image.kind == MappingKind::kVvar;
  for (const FlagEntry& entry : kFlags) {
    const bool dump = entry.bit == kVmDontDump;
    if ((flags & entry.bit) != 0 && !(vvar && dump)) image.flags |= entry.flag;
  }
  image.protection_key = static_cast<int32_t>(flags >> kVmKeyShift & 15);
  if ((flags & kVmHugeTlb) != 0) return kHugeTlb;
  if ((flags & (kVmPfnMap | kVmIo)) != 0 && !vvar) {
    return MapRefusal{"device mapping", "memory of a device cannot be replicated"};
  }
  return std::nullopt;
}

std::optional<MapRefusal> apply_vm_flags(std::string_view codes, MappingImage& image) {
  uint64_t bits = 0;
  std::optional<MapRefusal> refusal;
  for (size_t at = codes.find_first_not_of(' '); at + 1 < codes.size(); at += 3) {
    const std::string_view code = codes.substr(at, 2);
    for (const FlagEntry& entry : kFlags) {
      if (code == entry.code) bits |= entry.bit;
    }
    if (code == "ht") bits |= kVmHugeTlb;
    if (code == "pf" || code == "io") bits |= kVmIo;
    if (code == "ss") refusal = {"shadow stack", "user shadow stacks are not supported"};
    if (code == "gu") refusal = {"guard region", "MADV_GUARD_INSTALL is not supported"};
  }
  const int32_t key = image.protection_key;  // has a line of its own
  const auto other = apply_vm_bits(bits, image);
  image.protection_key = key;
  return other ? other : refusal;
}

}  // namespace replpage
