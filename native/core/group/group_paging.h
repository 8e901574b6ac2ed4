// The primary's side of replica paging: samples what is touched, has cold pages written to the page
// store, and tells the replica with an epoch which of its pages it need not hold any more.
//
// A page takes this way: resident -- old enough: pending, given to the pager -- durable, and not
// written since: stored -- told with the next epoch that does not write it: cold. A write at any
// point makes it resident again. So a location that a replica learns is that of the very content of
// the epoch that it comes with (rule 4).
//
// Worker thread only.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/access/sample_pace.h"
#include "core/channel/messages.h"
#include "core/group/group_types.h"
#include "core/group/paging_types.h"
#include "core/image/group_image.h"
#include "core/link/pager_link.h"
#include "core/paging/page_table.h"
#include "core/paging/store_cleaner.h"

namespace replpage {

class GroupPaging {
 public:
  // Throws SysError when the key cannot be read or made, or the pager not started.
  explicit GroupPaging(const GroupOptions& options);

  // Returns when the store is open. Throws StoreError when it cannot be, or does not answer in
  // time, or nobody wants it any more.
  void wait_open(uint64_t wait_us, const std::atomic<bool>* cancelled = nullptr);

  // Takes in what the processes have mapped, before runs of that image are noted.
  void fit(const GroupImage& image);
  // What the replica was given in the first copy.
  void note_copied(std::span<const PageRun> runs) { table_.note_runs(runs); }

  // Takes in the runs of an epoch that is about to be sent, and appends those of pages that the
  // replica may drop with it. Until note_sent() the table is ahead of the replica; where the epoch
  // cannot be sent the next one tells of them again.
  void add_cold_runs(const GroupImage& image, PageRunList& list);
  void note_sent();
  // What the table says is what the replica has.
  [[nodiscard]] bool replica_has_all() const { return sent_; }

  // The last epoch that was sent is committed: what it made useless in the store goes.
  void note_committed();

  // One turn: news of the pager, a sample when it is due, orders carried out as far as the pager
  // takes them. `image`: mappings as they were lately; `host_pids` by group pid.
  PagingReport turn(const GroupImage& image, const std::map<int32_t, pid_t>& host_pids,
                    const PagingOrder& order);

  // What the replica shall hold again, to be copied as if it had been written.
  std::vector<PageRun> take_wanted_back() { return std::exchange(wanted_back_, {}); }

  // Nothing will be read from this generation's directory any more: removes it, if the store
  // answers within `wait_us`.
  void remove_generation(uint64_t wait_us);

  // For a checkpoint: the pager is used beside paging, whose news it is then given; what the
  // replica has in the store; and segments that were written besides.
  PagerLink& pager() { return pager_; }
  void take_news_of(const PagerNews& news);
  // Nobody waits for the answer of a ticket any more that is not of paging's own.
  void forget_ticket(uint64_t ticket) { forgotten_.insert(ticket); }
  [[nodiscard]] std::vector<PageGroup> cold_pages() const { return table_.cold_pages(UINT64_MAX); }
  void note_segments(const std::set<uint32_t>& numbers) {
    segments_.insert(numbers.begin(), numbers.end());
  }

  // The private anonymous mappings of the image in `cells` parts each.
  [[nodiscard]] std::vector<InspectedMapping> inspect(const GroupImage& image, size_t cells) const;

  // Where the replica reads cold pages, once the store is open; with the directory. nullopt: it was
  // told, or the store is not open.
  struct StoreForReplica {
    StoreMessage message;
    UniqueFd directory;
  };
  std::optional<StoreForReplica> store_for_replica();

 private:
  struct Sampler {
    pid_t host_pid = 0;
    std::unique_ptr<AccessTracker> tracker;
  };

  struct Dropped {
    uint64_t ticket = 0;
    std::vector<uint32_t> segments;
  };

  void take_news();
  void take(const PagerOpened& opened);
  void take(const PagerWrittenMessage& written);
  void take(const PagerDoneMessage& done);
  void take(const PagerFailedMessage& failed);
  void take(const PagerEnded& ended);
  void give_back(uint64_t ticket, const std::map<int32_t, std::vector<PageRange>>& durable);

  void sample_when_due(const GroupImage& image, const std::map<int32_t, pid_t>& host_pids);
  AccessSample sample(const ProcessImage& process, pid_t host_pid);
  void evict(const std::map<int32_t, pid_t>& host_pids, const PagingOrder& order);
  std::vector<PageGroup> without_busy(std::span<const PageGroup> groups) const;
  bool submit(std::span<const PageGroup> groups, const std::map<int32_t, pid_t>& host_pids);
  // The batch of those that the pager can read.
  std::vector<PagerRun> runs_of(std::span<const PageGroup> groups,
                                const std::map<int32_t, pid_t>& host_pids,
                                std::vector<PageGroup>& batch);
  void clean(const std::map<int32_t, pid_t>& host_pids);
  void want_back(const PageGroup& group);
  void bring_back(const PagingOrder& order);
  void forget_gone(const GroupImage& image);
  void forget_sources(std::span<const PageGroup> of);
  bool know_source(int32_t pid, const std::map<int32_t, pid_t>& host_pids);
  uint64_t add_cold_run(const MovedPages& pages, PageRunList& list);
  [[nodiscard]] uint64_t newest_segment() const;
  [[nodiscard]] std::vector<uint32_t> dead_segments() const;
  PagingReport report() const;

  const PagingOptions options_;
  std::shared_ptr<const StoreKey> key_;
  StoreMessage store_;
  bool replica_knows_ = false;
  UniqueFd directory_;  // of the generation, as soon as the pager has opened it
  PagerLink pager_;
  PageTable table_;
  SamplePace pace_;
  uint64_t epoch_ = 0;
  uint64_t next_sample_us_ = 0, samples_ = 0, sample_us_ = 0;
  std::string tracker_name_;
  std::map<int32_t, Sampler> samplers_;                 // by group pid
  std::set<int32_t> sources_;                           // processes that the pager can read
  std::map<uint64_t, std::vector<PageGroup>> batches_;  // under way, by ticket
  std::vector<PageRun> wanted_back_;
  std::vector<PageGroup> stored_;  // resident, to be cold with the next epoch
  StoreCleaner cleaner_;
  std::set<uint32_t> segments_;     // that may be on disk
  std::vector<uint32_t> dead_;      // of these, since the last epoch was sent
  std::optional<Dropped> dropped_;  // of these, not known to be gone
  std::set<uint64_t> forgotten_;    // tickets
  StoreState state_ = StoreState::kOpening;
  std::string trouble_;
  uint64_t trouble_us_ = 0;  // when it was last met
  uint64_t written_bytes_ = 0, evicted_bytes_ = 0, brought_back_bytes_ = 0, pager_cpu_us_ = 0;
  bool sent_ = true;                // of the epoch that add_cold_runs() was last called for
  std::vector<MovedPages> untold_;  // its cold pages, while it is not
  uint64_t moved_bytes_ = 0;
};

}  // namespace replpage
