#include "core/restore/replica.h"

#include <fcntl.h>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/page_writer.h"
#include "core/restore/process_tree.h"
#include "core/restore/promotion.h"

namespace replpage {
namespace {

// Length of the longest prefix of runs of one process or object that ascends without overlap, so
// that the order within it does not matter.
size_t ascending_prefix(std::span<const PageRun> runs) {
  size_t count = 1;
  while (count < runs.size()) {
    const PageRun& last = runs[count - 1];
    const PageRun& next = runs[count];
    if (next.pid != last.pid || (next.pid == 0 && next.object != last.object) ||
        next.address < last.address + last.length) {
      break;
    }
    ++count;
  }
  return count;
}

class StubReplica final : public Replica {
 public:
  void see_primary(UniqueFd proc) override { proc_ = std::move(proc); }

  void shape(const GroupImage& image) override {
    if (image.processes.empty()) throw FormatError("an image has no processes");
    promotion_.expect(image);
    // Objects that vanish are kept by the mappings that the tree still has until it is shaped.
    objects_.shape(image.shared_objects);
    tree_.shape(image);
    for (const ProcessImage& process : image.processes) {
      const pid_t host_pid = process.threads.empty() ? 0 : process.threads.front().host_tid;
      const PrimaryFiles files(proc_.get(), host_pid);
      tree_.at(process.pid).shape_memory(process, {objects_, files});
      promotion_.keep_directory(process, files);
    }
  }

  void write(std::span<const PageRun> runs, StagedPages& staged) override {
    while (!runs.empty()) {
      const auto group = runs.first(ascending_prefix(runs));
      runs = runs.subspan(group.size());
      if (group.front().pid == 0) {
        objects_.write(group, staged);
      } else if (StubProcess* process = tree_.find(group.front().pid)) {
        // A process that is not there ended later in the epoch.
        PageWriter(*process, staged).write(group);
      }
    }
  }

  void get_ready(const GroupImage& image) override { promotion_.get_ready(image); }

  PromotedReplica promote(PromoteInput input,
                          const std::function<void(PromotedReplica&)>& before_run) override {
    if (input.image == nullptr) throw SysError("promote", EINVAL);
    return promotion_.run(std::move(input), before_run);
  }

  [[nodiscard]] uint64_t free_again_us() const override { return promotion_.free_again_us(); }
  uint64_t free_moved(bool locks_only) override { return promotion_.free_moved(locks_only); }

  ReplicaView view() override {
    ReplicaView view;
    for (const StubProcess* process : tree_.processes()) {
      const std::string folder = "/proc/" + std::to_string(process->pid());
      view.processes.push_back({.pid = process->pid(),
                                .memory = open_path(folder + "/mem", O_RDONLY),
                                .pagemap = open_path(folder + "/pagemap", O_RDONLY)});
    }
    view.objects = objects_.view();
    return view;
  }

  [[nodiscard]] uint64_t resident_bytes() const override {
    uint64_t bytes = 0;
    for (const StubProcess* process : tree_.processes()) bytes += process->resident_bytes();
    return bytes;
  }

  [[nodiscard]] uint64_t cold_bytes() const override {
    uint64_t pages = 0;
    for (StubProcess* process : tree_.processes()) pages += process->memory().cold().pages();
    return pages * kPageSize;
  }

 private:
  UniqueFd proc_;  // shows the primary
  SharedObjects objects_;
  ProcessTree tree_;
  Promotion promotion_{tree_, objects_};
};

}  // namespace

std::unique_ptr<Replica> Replica::create() { return std::make_unique<StubReplica>(); }

}  // namespace replpage
