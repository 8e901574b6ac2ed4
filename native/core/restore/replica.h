// The replica's side of a group: stopped processes that are always exactly one committed epoch.
// Lives in the keeper, which is pid 1 of the replica's PID namespace and traces every thread of it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/image/group_image.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_run.h"
#include "core/restore/drill.h"
#include "core/restore/syscall_batch.h"
#include "core/uffd/lazy_ranges.h"
#include "core/uffd/uffd.h"

namespace replpage {

// ContentPlace::source of pages in the page store.
inline constexpr uint32_t kStoreSource = 0;

class MovedAddress;

// Reads the staged bytes of a PageRun.
class StagedPages {
 public:
  virtual ~StagedPages() = default;
  // Bytes [offset, offset + length) of the staging area. Throws FormatError outside of it.
  virtual std::span<const uint8_t> data(uint64_t offset, uint64_t length) = 0;
};

// A frozen or dying primary process that lazy pages are read from.
struct LazySource {
  int32_t pid = 0;  // group pid
  UniqueFd memory;  // /proc/PID/mem of it
};

struct PromoteInput {
  const GroupImage* image = nullptr;
  std::vector<UniqueFd> handed;  // by position in image->open_files; invalid: recreate
  std::vector<LazyRange> lazy;
  bool exact = false;               // death capture or move: files are as the image says
  bool keep_files = false;          // --files keep
  UniqueFd outside_stream;          // where kOutsideStream leads
  MovedAddress* address = nullptr;  // comes to this machine with the group
  // Not 0: it is not let go, but tried out for so long at most; see drill.h.
  uint64_t drill_us = 0;
};

// A process whose missing pages must be served from the moment it runs.
struct LazyProcess {
  int32_t pid = 0;
  Uffd uffd;                      // MISSING registered over the mappings
  std::vector<PageRange> ranges;  // to be read from the dying process
  LazyRanges cold;                // to be read from kStoreSource, but for those
};

struct PromotedReplica {
  pid_t root = 0;  // in the keeper's PID namespace
  std::vector<LazyProcess> lazy;
  uint64_t took_us = 0;
  uint64_t ran_us = 0;  // when all was let run (now_us())
  DrillRun drill;       // where it was tried out
};

// The memory of a replica that stands by, for whoever copies it.
struct ReplicaView {
  struct Process {
    int32_t pid = 0;
    UniqueFd memory, pagemap;
  };
  struct Object {
    uint32_t id = 0;
    UniqueFd memfd;
  };
  std::vector<Process> processes;
  std::vector<Object> objects;
};

// One process of a replica, as descriptor and state restoring see it.
class ReplicaProcess {
 public:
  virtual ~ReplicaProcess() = default;
  [[nodiscard]] virtual int32_t pid() const = 0;
  // Runs a batch in the given thread (0: the leader). Throws SysError with the label, pid and errno
  // of the first operation that had to succeed and did not.
  virtual BatchResult run(const SyscallBatch& batch, int32_t tid = 0) = 0;
  // Moves descriptors of the keeper into the process in one batch; returns their numbers there,
  // all at or above `lowest`, close-on-exec.
  virtual std::vector<int> receive(std::span<const int> descriptors, int lowest) = 0;
};

class Replica {
 public:
  static std::unique_ptr<Replica> create();
  virtual ~Replica() = default;

  // A directory descriptor of a /proc that shows the primary, opened before the keeper's own was
  // mounted: for mapped files that have no path any more. Without it they cannot be replicated.
  virtual void see_primary(UniqueFd proc) = 0;

  // Builds processes, threads and address spaces of the image, or brings them from the last image
  // to this one: processes and threads appear and vanish, mappings are added, changed and removed.
  virtual void shape(const GroupImage& image) = 0;

  // Writes pages of processes and shared objects. Later runs win.
  virtual void write(std::span<const PageRun> runs, StagedPages& staged) = 0;

  // promote() is to come, of `image`, which has been shaped, or of one that follows it closely.
  // Does ahead what can be. Only shape(), write() and promote() may follow.
  virtual void get_ready(const GroupImage& image) = 0;

  // Turns the replica into the running group. Before a single instruction runs, `before_run` is
  // called with what must be served from now on; it must start serving in another thread and
  // return, because kernel state restored after it may touch lazy pages. `image` has been shaped.
  virtual PromotedReplica promote(PromoteInput input,
                                  const std::function<void(PromotedReplica&)>& before_run) = 0;

  // After promote(), from the same thread: frees a part of the old content of lazy ranges, which
  // was only moved away, while the group runs. Never stops it. Returns the bytes freed. What waits
  // for locks that the dying process holds is left for another call, after SIGCHLD. `locks_only`:
  // so is all that does not; freeing takes a processor, and the lock of the address space.
  virtual uint64_t free_moved(bool locks_only) = 0;

  // When free_moved() is to be called again though no SIGCHLD may come (CLOCK_MONOTONIC); 0: never.
  [[nodiscard]] virtual uint64_t free_again_us() const = 0;

  // For reading only. Throws SysError.
  virtual ReplicaView view() = 0;

  // Bytes resident in all processes of the replica.
  [[nodiscard]] virtual uint64_t resident_bytes() const = 0;
  // Bytes that are in the page store only.
  [[nodiscard]] virtual uint64_t cold_bytes() const = 0;
};

// Implemented by the descriptor part; called by promote() when the replica's memory is in place and
// threads are still in the stub. Installs every file table of the image exactly; `handed` as in
// PromoteInput. Throws SysError naming the descriptor.
void restore_descriptors(const PromoteInput& input, std::span<ReplicaProcess* const> processes);

// Rule 2: throws SysError(ESTALE, path) when a regular file of the image, open or mapped for
// writing, is not as the epoch recorded it.
void check_files_unchanged(const GroupImage& image);

}  // namespace replpage
