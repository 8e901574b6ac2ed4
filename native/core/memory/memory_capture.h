// The primary's side of one process's memory: what changed since the last look, copied out.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/group_image.h"
#include "core/memory/page_run.h"

namespace replpage {

enum class TrackerKind : uint8_t { kUffdWp = 1, kSoftDirty = 2 };

struct CopyRound {
  uint64_t data_pages = 0, zero_pages = 0, absent_pages = 0;
  uint64_t mapped_bytes = 0;
  bool process_gone = false;
};

// What is left to be served from the frozen or dying process after promotion.
struct LazyRange {
  int32_t pid = 0;  // in the group's PID namespace
  uint64_t start = 0, end = 0;
  template <class A>
  void visit(A& a) {
    a(pid, start, end);
  }
};

// A part of a process's memory beside what its replica has there.
struct Comparison {
  uint64_t next = 0;   // where the part ends; UINT64_MAX: there is no more
  uint64_t pages = 0;  // compared
  std::vector<PageRange> wrong;
};
// CRC32C of each page of a range as the replica has it; empty: it cannot tell.
using ReplicaHashes = std::function<std::vector<uint32_t>(const PageRange&)>;

class MemoryCapture {
 public:
  // Makes a userfaultfd inside the process by injection: returns its number there, or -errno.
  // nullopt when the process is gone. `close_remote` removes it from the process's table again.
  struct Injector {
    std::function<std::optional<long>()> create_uffd;
    std::function<void(int)> close_remote;
  };

  // host_pid: as we see it; group_pid: what PageRuns carry. The process must be stopped (the
  // injector needs it) for this constructor and for nothing else. Throws SysError, with EBUSY when
  // the process has a userfaultfd of its own and soft-dirty does not work on this kernel.
  static std::unique_ptr<MemoryCapture> create(pid_t host_pid, int32_t group_pid,
                                               std::optional<TrackerKind> wanted,
                                               const Injector& injector);

  // For a process that was never copied and stands at its end: copy_last() alone works, without
  // injection, and treats everything as written. Throws SysError.
  static std::unique_ptr<MemoryCapture> create_for_last_copy(pid_t host_pid, int32_t group_pid);

  virtual ~MemoryCapture() = default;

  [[nodiscard]] virtual TrackerKind tracker() const = 0;

  // False when the process has another address space by now (execve), or none.
  [[nodiscard]] virtual bool serves_process() const = 0;

  // Takes in mappings that are new. The process must be stopped and `mappings` read in this very
  // stop: tracking part of a mapping would split it, and the program could not mremap the whole of
  // it any more. Throws SysError.
  virtual void track(const std::vector<MappingImage>& mappings) = 0;

  // Copies everything that was written, appeared, moved or vanished since the last call and re-arms
  // tracking. May run while the process runs (pre-copy) or while it is frozen (stop-and-copy): the
  // call under freeze leaves nothing behind. New mappings are copied whole once they are tracked,
  // and left out before. After an exception the next call copies what this one should have copied
  // along. Not for shared objects.
  virtual CopyRound copy_changed(const std::vector<MappingImage>& mappings, PageSink& sink) = 0;

  // What was copied since did not reach the replica: it is copied again, as it is then. `written`
  // and `absent` are what the runs of those copies said, ascending.
  virtual void copy_again(std::span<const PageRange> written,
                          std::span<const PageRange> absent) = 0;

  // For a replica that has nothing yet: what was there at the last copy, from `start` on, is copied
  // again, at most `bytes_max` of it. `next` UINT64_MAX: it was all.
  struct OwedPart {
    uint64_t next = 0;
    uint64_t bytes = 0;
  };
  virtual OwedPart copy_again_from(uint64_t start, uint64_t bytes_max) = 0;

  // Between two copies, of which the last has reached the replica: looks whether that has what the
  // process has, from `start` on, at most `bytes_max`. What was written since is none of it.
  virtual Comparison compare(const std::vector<MappingImage>& mappings, uint64_t start,
                             uint64_t bytes_max, const ReplicaHashes& theirs) = 0;

  // Pages written since the last copy, also to shared objects, without re-arming; stops counting at
  // `limit`.
  [[nodiscard]] virtual uint64_t count_dirty(const std::vector<MappingImage>& mappings,
                                             uint64_t limit) = 0;

  // The last copy from a frozen or dying process: mappings with few dirty pages are copied, at most
  // `copy_pages_max` pages in all; of the others the whole mapping (or an aligned part of it) is
  // returned as lazy, meaning: forget what the replica has there and read it from this process.
  virtual std::vector<LazyRange> copy_last(const std::vector<MappingImage>& mappings,
                                           PageSink& sink, uint64_t copy_pages_max) = 0;

  // Begins the last copy, from a process that does not run any more: what copy_last() with the same
  // mappings would look for first. Any thread, which may be another one than calls that.
  virtual void look_last(const std::vector<MappingImage>& /*mappings*/) {}

  // For SharedObjectCapture: pages of a shared mapping, within `parts` of it (ascending), that are
  // not known to be unchanged through this process since the last call. Begins anew.
  virtual std::vector<PageRange> look_shared(const MappingImage& mapping,
                                             std::span<const PageRange> parts) = 0;
};

// Objects shared by processes of the group (shared anonymous memory, memfd): the union of what was
// written through any tracked mapping. Everything is copied again when a mapping has gone away
// unseen, and when an object with `is_memfd` (one that has descriptors) has new times or a new
// size, since pwrite and fallocate show nowhere else. Runs have pid 0.
class SharedObjectCapture {
 public:
  static std::unique_ptr<SharedObjectCapture> create();
  virtual ~SharedObjectCapture() = default;
  // `processes` pairs host pids with their images. Call after MemoryCapture of all of them, and
  // after note_exit() of those that have none.
  struct ProcessView {
    pid_t host_pid;
    const ProcessImage* image;
    MemoryCapture* memory;  // null: not tracked
  };
  virtual CopyRound copy_changed(const std::vector<ProcessView>& processes,
                                 const std::vector<SharedObjectImage>& objects, PageSink& sink) = 0;

  // To be called when a process of the group stands at its exit stop (its last thread): what it
  // wrote since the last copy is known from its page tables only, which are torn down next.
  // `memory` may be null for a process that was never copied. Does nothing when the group has no
  // shared objects. Never throws: when it cannot look, the objects are copied whole next time.
  virtual void note_exit(pid_t host_pid, MemoryCapture* memory) noexcept = 0;

  // As MemoryCapture::copy_again, for parts of the object with that SharedObjectImage::id.
  virtual void copy_again(uint32_t object, PageRange part) noexcept = 0;

  // Everything is copied again next time. For events after which page tables are gone before
  // anyone could look, such as execve of a process that was never copied.
  virtual void copy_all_again() noexcept = 0;
};

}  // namespace replpage
