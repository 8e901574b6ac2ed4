// Reads a frozen (or dying) group into a GroupImage and its pages into a sink.
//
// Knows every process of the tree as a Member: its pid inside the group, its memory tracker, what
// the last epoch knew of it. Methods that need ptrace stops run on the tracer thread; those that
// read while the primary runs belong to the group's worker thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/base/side_thread.h"
#include "core/image/descriptor_capture.h"
#include "core/image/group_image.h"
#include "core/image/process_capture.h"
#include "core/memory/memory_capture.h"
#include "core/trace/trace_tree.h"

namespace replpage {

// Thrown out of a pre-copy when the primary is dying, or nobody wants its epoch any more: what was
// not copied stays marked.
class CaptureCancelled : public std::runtime_error {
 public:
  CaptureCancelled() : std::runtime_error("capture cancelled") {}
};

// How much a capture of kernel state reads.
struct StateDetail {
  bool first = false;        // nothing is known yet; also looks for all that cannot be replicated
  bool slow_state = false;   // what seldom changes: credentials, limits, scheduling, VmFlags
  bool last = false;         // the same exactly, but as quickly as can be: nobody runs meanwhile
  bool inject = false;       // may run system calls in the primary
  bool with_content = true;  // queues of pipes and sockets: not needed when they are handed over
  Refusals* refusals = nullptr;  // takes descriptors, and at first mappings, that are refused
  bool unseen_ends = false;      // processes may have ended while nobody was attached
};

class GroupCapture {
 public:
  // `stdio_path`: where standard output of a promoted group goes; empty: nowhere. `cancelled` may
  // be set by any thread, and outlives the capture.
  GroupCapture(TraceTree& tree, std::optional<TrackerKind> tracker, std::string stdio_path,
               const std::atomic<bool>& cancelled);

  // Tracer thread, tree frozen. Gives each process that needs a tracker and has none (new, or
  // executed another program) one by injection, but for the small ones that no epoch has seen yet.
  // True when there was such a process.
  bool admit_new();
  [[nodiscard]] bool has_new() const;
  // Tracer thread, tree frozen, `image` of this very stop: the same for those that turned out too
  // large to be copied without a tracker, or share memory.
  void admit_grown(const GroupImage& image);

  // Tracer thread, tree frozen, `image` of this very stop: takes in mappings that are new, so that
  // they can be copied while the primary runs.
  void track_mappings(const GroupImage& image);
  // Tracer thread. Whether much has been mapped since track_mappings() was last called.
  [[nodiscard]] bool has_grown() const;

  // Tracer thread, tree frozen or dying. Kernel state, mappings and descriptors, the
  // root's first. Throws SysError (ESRCH: the root is gone), NotThisTime when a process was killed
  // meanwhile: freeze again.
  GroupImage capture_state(const StateDetail& detail);

  // Tracer thread, tree frozen: the pages that belong to `image`. What the sink throws passes
  // through, and what was not copied stays marked.
  CopyRound copy_frozen(const GroupImage& image, PageSink& sink);

  // Tracer thread, tree dying. Reads the mappings for the capture with StateDetail::last and the
  // copy_last() that come next, and begins to look for written pages: what a dying process has
  // written does not change any more. Throws SysError when it cannot look.
  void begin_last_look();
  // Waits for the look. Throws what it met.
  void end_last_look();

  // Tracer thread, tree dying or frozen for good. See MemoryCapture::copy_last.
  std::vector<LazyRange> copy_last(const GroupImage& image, PageSink& sink,
                                   uint64_t copy_pages_max);

  // Worker thread, the primary runs: mappings and shared objects of `image` as they are now.
  void refresh_mappings(GroupImage& image);
  // Worker thread, the primary runs. Throws CaptureCancelled once it is cancelled.
  CopyRound copy_running(const GroupImage& image, PageSink& sink);

  // Pages written since the last copy, counted up to `limit`.
  uint64_t count_dirty(const GroupImage& image, uint64_t limit);

  // Worker thread. The runs will not reach the replica: what they hold is copied again.
  void copy_again(const std::vector<PageRun>& runs);

  // Where copy_again_from() has got to.
  struct CopyCursor {
    pid_t host_pid = 0;
    uint64_t address = 0;
    bool began = false;
  };
  // Worker thread. For a replica that has nothing yet: at most `bytes_max` more of what the others
  // have is copied again; shared objects with the first part. False: that was all.
  bool copy_again_from(CopyCursor& cursor, uint64_t bytes_max);

  // Worker thread. Looks whether the replica that `theirs` asks has what the group had at the last
  // epoch, `image`, which was committed: at most `bytes_max` more of it. False: that was all.
  using HashesOf = std::function<std::vector<uint32_t>(int32_t group_pid, const PageRange&)>;
  struct Compared {
    uint64_t pages = 0;
    std::string wrong;  // the first page that differs, in words; empty: none does
  };
  bool compare(const GroupImage& image, CopyCursor& cursor, uint64_t bytes_max,
               const HashesOf& theirs, Compared& result);

  // The processes that are known. Tracer thread, or the worker while no tracer job runs.
  [[nodiscard]] std::vector<pid_t> host_pids() const;

  // Takes the open files of the image from the primary, see DescriptorCapture::take.
  std::vector<UniqueFd> take_descriptors(const GroupImage& image);

  // A process of the group ended; remembered as a zombie while its parent has not waited for it.
  void note_gone(pid_t host_pid, int wait_status);
  // Tracer thread. The last thread of a process stands at its exit stop, or a process executes
  // another program: what it wrote to shared memory is lost sight of.
  void note_exit(pid_t host_pid);
  void note_execution(pid_t host_pid);

  [[nodiscard]] pid_t host_pid_of(int32_t group_pid) const;
  [[nodiscard]] std::optional<TrackerKind> tracker() const { return tracker_in_use_; }

 private:
  struct Member {
    pid_t host_pid = 0;
    int32_t group_pid = 0;
    uint32_t executions = 0;
    std::unique_ptr<MemoryCapture> memory;
    uint64_t tracked_pages = 0;  // size of the address space when its mappings were tracked
    std::optional<ProcessImage> last;
    bool asked = false;  // it was captured with injection
    std::shared_ptr<const std::vector<MappingImage>> last_mappings;  // of begin_last_look()
  };

  // group_members.cc
  static bool is_same(const Member& member, const TracedProcess& process);
  [[nodiscard]] bool is_new(const TracedProcess& process) const;
  static pid_t parent_of(pid_t host_pid);
  void forget_gone();
  Member* known_member(const TracedProcess& process);
  void admit(Member& member, pid_t thread);
  void copy_young(const GroupImage& image, PageSink& sink);
  bool ends_by_itself(const TracedProcess& process) const;
  bool add_zombie(GroupImage& image, pid_t host_pid, std::optional<int> wait_status);

  std::vector<const TracedProcess*> parents_first() const;
  std::optional<ProcessImage> capture_member(Member& member, const TracedProcess& process,
                                             const StateDetail& detail);
  std::optional<std::vector<MappingImage>> read_mappings(pid_t host_pid,
                                                         const ProcessImage* previous,
                                                         const StateDetail& detail);
  void fill_parents(GroupImage& image) const;
  // While the process runs, a mapping may be gone since the map was read: it is left out then.
  enum class WhenGone : uint8_t { kThrow, kDrop };
  void fill_shared_objects(GroupImage& image, WhenGone when_gone);
  bool add_shared_object(GroupImage& image, const ProcessImage& process,
                         const MappingImage& mapping);
  uint32_t object_id(uint64_t device, uint64_t inode);
  void fill_zombies(GroupImage& image, bool unseen_ends);
  DescriptorCaptureInput descriptor_input(const GroupImage& image);
  Member* member_of(int32_t group_pid);
  void track_all(const GroupImage& image);
  CopyRound copy_all(const GroupImage& image, PageSink& sink);

  TraceTree& tree_;
  std::optional<TrackerKind> wanted_;
  std::optional<TrackerKind> tracker_in_use_;
  std::map<pid_t, Member> members_;  // by host pid
  std::deque<std::pair<pid_t, std::optional<int>>>
      ended_;  // host pid and wait status; may be waited for by now
  std::map<std::pair<uint64_t, uint64_t>, uint32_t> object_ids_;  // by device and inode
  SideThread look_thread_;
  std::string stdio_path_;
  std::unique_ptr<DescriptorCapture> descriptors_;
  std::unique_ptr<SharedObjectCapture> shared_;
  std::mutex memory_mutex_;  // guards the trackers between worker and tracer thread
  const std::atomic<bool>& cancelled_;
  std::atomic<bool> has_shared_ = false;     // the group had shared objects at the last copy
  std::atomic<bool> shared_unseen_ = false;  // something may have written to them unseen
};

}  // namespace replpage
