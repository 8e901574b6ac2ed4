#include "core/restore/mapper.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/own_memory.h"

namespace replpage {
namespace {

// Descriptors passed at once while mappings are made.
constexpr size_t kSourcesMax = 128;

bool is_file(MappingKind kind) {
  return kind == MappingKind::kFilePrivate || kind == MappingKind::kFileShared;
}

bool is_object(MappingKind kind) {
  return kind == MappingKind::kSharedObject || kind == MappingKind::kMemfdPrivate;
}

// Whether the file is the one that the primary maps: the path may lead to another by now. Where
// stat(2) and maps disagree about a file's number (overlay file systems), a mapping of it tells.
bool is_mapped_file(const UniqueFd& fd, const MappingImage& mapping) {
  struct stat file {};
  if (::fstat(fd.get(), &file) == 0 && file.st_ino == mapping.inode) return true;
  void* at = ::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (at == MAP_FAILED) return false;
  bool same = false;
  for (const OwnMapping& own : own_mappings()) {
    if (own.range.start == reinterpret_cast<uint64_t>(at)) same = own.inode == mapping.inode;
  }
  ::munmap(at, kPageSize);
  return same;
}

uint64_t segment_bytes(int id) {
  shmid_ds segment{};
  if (::shmctl(id, IPC_STAT, &segment) != 0) {
    throw SysError::from_errno("look up shared memory segment " + std::to_string(id));
  }
  return segment.shm_segsz;
}

}  // namespace

void Mapper::make(const std::vector<MappingStep>& steps) {
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

void Mapper::collect(const std::vector<MappingStep>& steps, size_t& last) {
  owned_.clear();
  borrowed_.clear();
  by_file_.clear();
  by_object_.clear();
  for (; last < steps.size() && borrowed_.size() < kSourcesMax; ++last) {
    if (steps[last].kind == MappingStep::Kind::kMap) need(*steps[last].next);
  }
}

// A shared file is opened for writing too where that is allowed, since a later mprotect(2) may ask
// for it.
UniqueFd Mapper::open_source(const MappingImage& mapping) const {
  UniqueFd fd;
  if (mapping.kind == MappingKind::kFileShared) {
    fd = UniqueFd(::open(mapping.path.c_str(), O_RDWR | O_CLOEXEC));
  }
  if (!fd.valid()) fd = UniqueFd(::open(mapping.path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.valid() && is_mapped_file(fd, mapping)) return fd;
  const int error = fd.valid() ? ESTALE : errno;
  UniqueFd of_primary = sources_.files.open_mapped(mapping);
  if (!of_primary.valid()) throw SysError("map a file", error, on_path(mapping.path));
  return of_primary;
}

void Mapper::need(const MappingImage& next) {
  if (is_file(next.kind)) {
    const Key key{next.path, next.kind == MappingKind::kFileShared};
    if (!by_file_.try_emplace(key, borrowed_.size()).second) return;
    borrowed_.push_back(owned_.emplace_back(open_source(next)).get());
  } else if (is_object(next.kind)) {
    if (!by_object_.try_emplace({next.device, next.inode}, borrowed_.size()).second) return;
    borrowed_.push_back(sources_.objects.memfd(next.device, next.inode));
  }
}

void Mapper::add(const MappingStep& step, const std::vector<int>& remote, SyscallBatch& batch) {
  if (step.kind == MappingStep::Kind::kMap) {
    add_map(step, source_of(*step.next, remote), batch);
  } else {
    add_change(step, batch);
  }
}

MapSource Mapper::source_of(const MappingImage& next, const std::vector<int>& remote) const {
  MapSource source;
  if (is_file(next.kind)) {
    source.descriptor = remote[by_file_.at({next.path, next.kind == MappingKind::kFileShared})];
  } else if (is_object(next.kind)) {
    source.descriptor = remote[by_object_.at({next.device, next.inode})];
  } else if (next.kind == MappingKind::kSysvShared) {
    source.segment_bytes = segment_bytes(next.shm_id);
    const auto scratch = gaps_.find(page_ceil(source.segment_bytes));
    if (!scratch) throw SysError("attach a shared memory segment", ENOMEM, on_pid(process_.pid()));
    source.scratch = *scratch;
  }
  return source;
}

}  // namespace replpage
