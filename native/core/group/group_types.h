// What a group is asked for, and what it reports.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/group/paging_types.h"
#include "core/image/refusal.h"
#include "core/link/replica_options.h"
#include "core/link/replica_place.h"
#include "core/link/replica_set.h"
#include "core/memory/memory_capture.h"

namespace replpage {

struct GroupOptions : ReplicaOptions {
  pid_t pid = 0;              // of the root, as the daemon sees it
  uint64_t start_time = 0;    // of the root: see start_time_of(); 0: not known
  bool attach_always = true;  // false: attached for captures only, loses up to one epoch
  bool promote_on_exit = false;
  int retries_left = 3;                  // crash promotions still allowed
  uint64_t crash_delay_us = 0;           // before a crash is answered by a promotion
  uint64_t freeze_deadline_us = 20'000;  // until everything stands still
  uint64_t max_pause_us = 50'000;        // until it runs again
  std::optional<TrackerKind> tracker;
  std::optional<PagingOptions> paging;  // none: the replica holds everything
  std::vector<ReplicaHome> homes{{}};   // of its replicas, by rank; the usual is one here
  // A commit waits until who is out is recorded: see ReplicaSet.
  bool records_outs = false;
};

struct StartReport {
  uint64_t epoch = 0;
  TrackerKind tracker = TrackerKind::kUffdWp;
  uint64_t copied_bytes = 0;
  uint64_t copy_us = 0;
  std::vector<std::string> warnings;
};

struct EpochStats {
  uint64_t epoch = 0;
  uint64_t pause_us = 0;      // from the first interrupt to the last continue, of the longest stop
  uint64_t throttled_us = 0;  // that it stood still beside that, to be copied at all
  uint64_t copy_us = 0;       // pre-copy and stop-and-copy
  uint64_t commit_us = 0;     // until the replica had applied it
  uint64_t cpu_us = 0;        // of the group's own threads, and of the keeper while it applied it
  uint64_t dirty_pages = 0, zero_pages = 0;
  uint64_t bytes = 0;
  uint32_t precopy_rounds = 0;
  bool abandoned = false;
  std::string reason;  // when abandoned
  uint64_t mapped_bytes = 0;
  uint64_t primary_bytes = 0, resident_bytes = 0;  // memory of the primary, of the replica
  uint64_t cold_bytes = 0;                         // in the page store only
  uint32_t threads = 0, processes = 0;
};

// What a replica is made of at the moment.
struct ReplicaParts {
  pid_t holder_pid = 0;  // below it are the keeper and the replica; 0: none was started
  uint64_t staging_bytes = 0;
  std::vector<ReplicaView> replicas = {};
};

struct PromotionReport {
  uint64_t epoch = 0;
  pid_t pid = 0, host_pid = 0;
  bool exact = false;  // nothing was lost: a death capture or a planned promotion
  uint64_t decision_to_run_us = 0;
  uint64_t death_to_run_us = 0;  // from the first exit stop seen
  uint64_t lazy_pages = 0;       // pages still read from the old process when it ran
  std::string why_not_exact;     // of a killed process; empty: it is exact, or was not to be
  std::string node = {};         // of the replica; empty: this machine
};

enum class DeathCause : uint8_t { kSigkill, kSignal, kCrash, kExit };

// Thrown by GroupSession::start and epoch when something cannot be replicated (rule 5), or must not
// be (rule 10).
class RefusedError : public std::runtime_error {
 public:
  explicit RefusedError(Refusals list)
      : std::runtime_error("it has what cannot be replicated"), refusals(std::move(list)) {}
  Refusals refusals;
};

// Called from the group's own threads; must not block.
class GroupEvents {
 public:
  virtual ~GroupEvents() = default;
  virtual void on_progress(uint64_t bytes, uint64_t bytes_total) = 0;
  virtual void on_died(DeathCause cause, int signal, int status) = 0;
  virtual void on_promoted(const PromotionReport& report) = 0;
  virtual void on_drained(uint64_t pages, uint64_t took_us) = 0;
  virtual void on_ended(const std::string& reason, int signal, int status) = 0;
  virtual void on_unprotected(const std::string& reason) = 0;
  // One of several replicas is lost, and epochs go on without it; GroupSession::recorded().
  virtual void on_replica_out(const std::string& /*node*/, const std::string& /*why*/) {}
  // `compared`: pages of the replica in sync there that were found to be the primary's.
  virtual void on_drilled(const std::string& /*node*/, uint64_t /*epoch*/, uint64_t /*compared*/,
                          const DrilledMessage& /*message*/) {}
  virtual void on_replica_in_sync(const std::string& /*node*/, uint64_t /*epoch*/) {}
};

}  // namespace replpage
