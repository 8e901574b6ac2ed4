#include "core/restore/address_space.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/address_gaps.h"
#include "core/restore/mapping_batch.h"

namespace replpage {
namespace {

// Descriptors passed at once while mappings are made.
constexpr size_t kSourcesMax = 128;

struct OwnMapping {
  PageRange range;
  std::string name;
};

std::vector<OwnMapping> read_own_maps() {
  const auto text = read_proc("/proc/self/maps");
  if (!text) throw SysError("read", ENOENT, on_path("/proc/self/maps"));
  std::vector<OwnMapping> mappings;
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);) {
    OwnMapping mapping;
    if (std::sscanf(line.c_str(), "%lx-%lx", &mapping.range.start, &mapping.range.end) != 2) {
      throw FormatError("a line of /proc/self/maps has no range");
    }
    if (const size_t at = line.find('['); at != std::string::npos) mapping.name = line.substr(at);
    mappings.push_back(std::move(mapping));
  }
  return mappings;
}

bool overlap(PageRange a, PageRange b) { return a.start < b.end && b.start < a.end; }

std::vector<MappingImage> special_of(const std::vector<MappingImage>& mappings) {
  std::vector<MappingImage> special;
  for (const MappingImage& mapping : mappings) {
    if (mapping.kind == MappingKind::kVdso || mapping.kind == MappingKind::kVvar) {
      special.push_back(mapping);
    }
  }
  return special;
}

// Opens the file behind a mapping. A shared one is opened for writing too where that is allowed,
// since a later mprotect(2) may ask for it.
UniqueFd open_source(const MappingImage& mapping) {
  if (mapping.kind == MappingKind::kFileShared) {
    UniqueFd fd(::open(mapping.path.c_str(), O_RDWR | O_CLOEXEC));
    if (fd.valid()) return fd;
  }
  return open_path(mapping.path, O_RDONLY);
}

uint64_t segment_bytes(int id) {
  shmid_ds segment{};
  if (::shmctl(id, IPC_STAT, &segment) != 0) {
    throw SysError::from_errno("look up shared memory segment " + std::to_string(id));
  }
  return segment.shm_segsz;
}

// Makes new mappings; passes the files and objects they need to the process in portions.
class Mapper {
 public:
  Mapper(ReplicaProcess& process, const SharedObjects& objects, AddressGaps gaps)
      : process_(process), objects_(objects), gaps_(std::move(gaps)) {}

  void make(const std::vector<MappingStep>& steps) {
    for (size_t first = 0; first < steps.size();) {
      size_t last = first;
      collect(steps, last);
      const std::vector<int> remote = process_.receive(borrowed_, 0);
      SyscallBatch batch;
      for (; first < last; ++first) add(steps[first], remote, batch);
      for (const int fd : remote) batch.add("close", SYS_close, {fd});
      if (!batch.empty()) process_.run(batch);
    }
  }

 private:
  using Key = std::pair<std::string, bool>;

  // Takes steps until the sources they need are enough for one portion.
  void collect(const std::vector<MappingStep>& steps, size_t& last) {
    owned_.clear();
    borrowed_.clear();
    by_file_.clear();
    by_object_.clear();
    for (; last < steps.size() && borrowed_.size() < kSourcesMax; ++last) {
      if (steps[last].kind == MappingStep::Kind::kMap) need(*steps[last].next);
    }
  }

  void need(const MappingImage& next) {
    if (next.kind == MappingKind::kFilePrivate || next.kind == MappingKind::kFileShared) {
      const Key key{next.path, next.kind == MappingKind::kFileShared};
      if (!by_file_.try_emplace(key, borrowed_.size()).second) return;
      borrowed_.push_back(owned_.emplace_back(open_source(next)).get());
    } else if (is_object(next.kind)) {
      if (!by_object_.try_emplace({next.device, next.inode}, borrowed_.size()).second) return;
      borrowed_.push_back(objects_.memfd(next.device, next.inode));
    }
  }

  static bool is_object(MappingKind kind) {
    return kind == MappingKind::kSharedObject || kind == MappingKind::kMemfdPrivate;
  }

  void add(const MappingStep& step, const std::vector<int>& remote, SyscallBatch& batch) {
    if (step.kind != MappingStep::Kind::kMap) return add_change(step, batch);
    const MappingImage& next = *step.next;
    MapSource source;
    if (next.kind == MappingKind::kFilePrivate || next.kind == MappingKind::kFileShared) {
      source.descriptor = remote[by_file_.at({next.path, next.kind == MappingKind::kFileShared})];
    } else if (is_object(next.kind)) {
      source.descriptor = remote[by_object_.at({next.device, next.inode})];
    } else if (next.kind == MappingKind::kSysvShared) {
      source.segment_bytes = segment_bytes(next.shm_id);
      const auto scratch = gaps_.find(page_ceil(source.segment_bytes));
      if (!scratch)
        throw SysError("attach a shared memory segment", ENOMEM, on_pid(process_.pid()));
      source.scratch = *scratch;
    }
    add_map(step, source, batch);
  }

  ReplicaProcess& process_;
  const SharedObjects& objects_;
  AddressGaps gaps_;
  std::vector<UniqueFd> owned_;
  std::vector<int> borrowed_;
  std::map<Key, size_t> by_file_;
  std::map<std::pair<uint64_t, uint64_t>, size_t> by_object_;
};

void add_move(const MappingImage& from, uint64_t to, SyscallBatch& batch) {
  const uint64_t bytes = from.range().bytes();
  batch.add("move the vdso", SYS_mremap,
            {from.start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to});
}

}  // namespace

std::vector<MappingImage> own_special_mappings() {
  std::vector<MappingImage> special;
  for (const OwnMapping& mapping : read_own_maps()) {
    MappingImage image;
    image.start = mapping.range.start;
    image.end = mapping.range.end;
    if (mapping.name == "[vdso]") {
      image.kind = MappingKind::kVdso;
    } else if (mapping.name.starts_with("[vvar")) {
      image.kind = MappingKind::kVvar;
    } else {
      continue;
    }
    special.push_back(image);
  }
  return special;
}

std::vector<PageRange> own_mappings() {
  std::vector<PageRange> ranges;
  for (const OwnMapping& mapping : read_own_maps()) ranges.push_back(mapping.range);
  return ranges;
}

uint64_t syscall_instruction_in_vdso(uint64_t vdso) {
  static const uint64_t offset = [] {
    for (const MappingImage& own : own_special_mappings()) {
      if (own.kind != MappingKind::kVdso) continue;
      const auto* bytes = reinterpret_cast<const uint8_t*>(own.start);  // NOLINT: our own vdso
      for (uint64_t at = 0; at + 1 < own.range().bytes(); ++at) {
        if (bytes[at] == 0x0F && bytes[at + 1] == 0x05) return at;
      }
    }
    return uint64_t{0};
  }();
  return offset == 0 ? 0 : vdso + offset;
}

void AddressSpace::shape(ReplicaProcess& process, const std::vector<MappingImage>& next,
                         PageRange stub, const SharedObjects& objects) {
  std::vector<MappingImage> now;
  now.reserve(regions_.size());
  for (const Region& region : regions_) now.push_back(region.image);
  std::vector<MappingStep> steps = plan_mappings(now, next);
  const auto unmaps_end = std::find_if(steps.begin(), steps.end(), [](const MappingStep& step) {
    return step.kind != MappingStep::Kind::kUnmap;
  });
  SyscallBatch unmaps;
  for (auto step = steps.begin(); step != unmaps_end; ++step) add_change(*step, unmaps);
  if (!unmaps.empty()) process.run(unmaps);
  steps.erase(steps.begin(), unmaps_end);

  move_special(process, next, stub);
  if (!steps.empty()) {
    allocate_keys(process, next);
    AddressGaps gaps;
    gaps.occupy(stub);
    for (const std::vector<MappingImage>* list : {&std::as_const(now), &next}) {
      for (const MappingImage& mapping : *list) gaps.occupy(mapping.range());
    }
    Mapper(process, objects, std::move(gaps)).make(steps);
  }
  keep_regions(next);
}

// Takes over the image, with what is known about regions that stay.
void AddressSpace::keep_regions(const std::vector<MappingImage>& next) {
  std::vector<Region> regions;
  regions.reserve(next.size());
  size_t old = 0;
  for (const MappingImage& mapping : next) {
    if (is_special(mapping.kind)) continue;
    Region& region = regions.emplace_back(Region{mapping, false});
    while (old < regions_.size() && regions_[old].image.end <= mapping.start) ++old;
    for (size_t i = old; i < regions_.size() && regions_[i].image.start < mapping.end; ++i) {
      region.written |= regions_[i].written;
    }
  }
  regions_ = std::move(regions);
}

void AddressSpace::move_special(ReplicaProcess& process, const std::vector<MappingImage>& next,
                                PageRange stub) {
  const std::vector<MappingImage> wanted = special_of(next);
  SyscallBatch batch;
  if (wanted.empty()) {
    for (const MappingImage& mapping : special_) {
      batch.add("unmap the vdso", SYS_munmap, {mapping.start, mapping.range().bytes()});
    }
    if (!batch.empty()) process.run(batch);
    special_.clear();
    return;
  }
  bool same = wanted.size() == special_.size(), crossing = false;
  for (size_t i = 0; same && i < wanted.size(); ++i) {
    same = wanted[i].kind == special_[i].kind &&
           wanted[i].range().bytes() == special_[i].range().bytes();
    for (const MappingImage& from : special_) crossing |= overlap(wanted[i].range(), from.range());
  }
  if (!same)
    throw SysError("place the vdso (it differs from the primary's)", ENOTSUP,
                   on_pid(process.pid()));
  if (wanted.front().start == special_.front().start) return;
  AddressGaps gaps;
  gaps.occupy(stub);
  for (const auto* list : {&wanted, &std::as_const(special_), &next}) {
    for (const MappingImage& mapping : *list) gaps.occupy(mapping.range());
  }
  for (const Region& region : regions_) gaps.occupy(region.image.range());
  for (size_t i = 0; i < wanted.size(); ++i) {
    MappingImage& from = special_[i];
    if (crossing) {
      const auto scratch = gaps.find(from.range().bytes());
      if (!scratch) throw SysError("move the vdso", ENOMEM, on_pid(process.pid()));
      add_move(from, *scratch, batch);
      from.end = *scratch + from.range().bytes();
      from.start = *scratch;
      gaps.occupy(from.range());
    }
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    add_move(special_[i], wanted[i].start, batch);
    special_[i] = wanted[i];
  }
  process.run(batch);
}

// Keys count up, so those below the wanted ones are allocated and freed again.
void AddressSpace::allocate_keys(ReplicaProcess& process, const std::vector<MappingImage>& next) {
  std::set<int> wanted;
  for (const MappingImage& mapping : next) {
    if (mapping.protection_key > 0 && !keys_.contains(mapping.protection_key)) {
      wanted.insert(mapping.protection_key);
    }
  }
  std::set<int> surplus;
  while (!wanted.empty()) {
    SyscallBatch batch;
    batch.add("pkey_alloc", SYS_pkey_alloc, {0, 0});
    const int key = static_cast<int>(process.run(batch).results[0]);
    if (wanted.erase(key) != 0) {
      keys_.insert(key);
    } else {
      surplus.insert(key);
    }
  }
  SyscallBatch batch;
  for (const int key : surplus) batch.add("pkey_free", SYS_pkey_free, {key});
  if (!batch.empty()) process.run(batch);
}

uint64_t AddressSpace::syscall_instruction() const {
  for (const MappingImage& mapping : special_) {
    if (mapping.kind == MappingKind::kVdso) return syscall_instruction_in_vdso(mapping.start);
  }
  return 0;
}

}  // namespace replpage
