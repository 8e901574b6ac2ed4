// Serves the missing pages of running processes from where they are (a dying process, the page
// store), and fetches the rest in the background until nothing is missing.
//
// One thread waits for faults and events and answers at once what it can without waiting for a
// device; the rest is left to readers. Others drain. Threads that fault are never answered with
// anything but the page's content: as long as it cannot be read they wait; what was damaged raises
// SIGBUS; and when a source is lost for good the owner must kill them.
#pragma once

#include <poll.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/inheriting_mutex.h"
#include "core/base/unique_fd.h"
#include "core/uffd/page_source.h"
#include "core/uffd/served_memory.h"

namespace replpage {

class FaultServer {
 public:
  struct Served {
    Uffd uffd;  // MISSING with kLazyFeatures registered over the mappings; non-blocking
    MissingPages missing;
  };
  using Sources = std::vector<std::unique_ptr<PageSource>>;  // by ContentPlace::source
  // Called on the server's threads.
  struct Events {
    std::function<void()> released;  // at most once: nothing is left but in the page store
    std::function<void()> drained;   // at most once: nothing is missing any more
    std::function<void(const std::string& reason)> lost;   // at most once
    std::function<void(const std::string& what)> damaged;  // pages that raise SIGBUS from now on
  };
  struct Figures {
    uint64_t passing_left = 0, stored_left = 0;  // pages
    uint64_t pages_filled = 0, faults = 0, pages_damaged = 0;
    uint64_t waiting = 0;                      // faults that wait for a device
    uint64_t waiting_us = 0;                   // the longest of them, until now
    uint64_t released_us = 0, drained_us = 0;  // from the start; 0: not yet
    std::string trouble;                       // why a source does not answer; empty: it does
  };

  // Serving starts at once, on the caller's CPUs until nothing is left but in the page store: who
  // faults is quickest answered on its own. All else runs on those of `background` from the start.
  // Throws SysError.
  FaultServer(std::vector<Served> served, Sources sources, Events events,
              const cpu_set_t& background);
  // Stops serving. Unless everything is drained, the processes must be gone: closing the
  // userfaultfds lets the kernel fill what is missing with zeros. Waits for reads under way.
  ~FaultServer();
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  // Whether the page store is read only for what is asked for, until further notice.
  void hold_refill(bool held);

  [[nodiscard]] Figures figures() const;
  // Why the source was lost; empty: it was not.
  [[nodiscard]] std::string loss() const;

 private:
  // Between two tries of what an event, or lack of memory, holds up.
  static constexpr long kRetryNs = 50'000;
  // Memory for the replica's pages may be short for a while; then the group is lost.
  static constexpr int kRetriesMax = 200'000;  // 10 s

  // More than one where reading may wait for a device: the background is not held up by one read.
  static constexpr size_t kDrains = 2;

  // Takes the lock ahead of the background drain.
  class Precedence;

  using Memories = std::vector<std::shared_ptr<ServedMemory>>;
  // What the drain reads next: decided under the lock, read without it.
  struct Chunk {
    std::shared_ptr<ServedMemory> memory;
    std::vector<LazyPiece> pieces;  // of one source
  };
  // Chunks to come, in the order of the store: it is read from one end to the other.
  struct DrainPlan {
    std::shared_ptr<ServedMemory> memory;
    std::vector<LazyPiece> pieces;
    size_t next = 0;
  };
  // A page that somebody waits for, with what is read along with it.
  struct Wanted {
    std::shared_ptr<ServedMemory> memory;
    uint64_t page = 0;
    LazyPiece piece;
    uint64_t events_applied = 0;
    uint64_t since_us = 0;
    bool follows = false;  // the one before it was near: what comes next will be wanted, too
  };

  void serve();
  void run_anywhere(pthread_t thread) const;
  // Those served now, and what to poll for them.
  Memories list_polled(std::vector<pollfd>& items);
  bool wait_for_faults(std::vector<pollfd>& items);
  void read_messages(const std::shared_ptr<ServedMemory>& memory);
  void answer_faults(const std::shared_ptr<ServedMemory>& memory);
  FillState answer(const std::shared_ptr<ServedMemory>& memory, uint64_t page, bool follows);
  uint64_t reach(const ContentPlace& from);
  void read_around();

  // The readers.
  void want(const std::shared_ptr<ServedMemory>& memory, uint64_t page, bool follows);
  void read_wanted();
  std::optional<Wanted> next_wanted();
  void look_ahead(const ContentPlace& from);
  void deliver(const Wanted& wanted, std::span<const uint8_t> content);
  FillState deliver_once(const Wanted& wanted, std::span<const uint8_t> content);
  void forget_wanted(const Wanted& wanted);

  // Only one may read from processes: they go when it has found that nothing is left.
  enum class DrainRole : uint8_t { kAll, kStoreOnly };
  void drain(DrainRole role);
  [[nodiscard]] bool must_hurry(DrainRole role) const;
  static void rest_a_while();
  void wait_released();
  void start_helpers();
  std::optional<Chunk> next_chunk();
  bool all_released() const;
  Chunk claim_passing();
  Chunk claim_stored();
  bool make_plan();
  void drain_chunk(const Chunk& chunk, std::span<uint8_t> buffer);
  bool read_chunk(const Chunk& chunk, std::span<uint8_t> buffer);
  void drain_piece(const Chunk& chunk, const LazyPiece& piece, std::span<uint8_t> content);
  bool fill_piece(const Chunk& chunk, const LazyPiece& piece, std::span<const uint8_t> content);
  static FillState fill_unchanged(ServedMemory& memory, const LazyPiece& piece,
                                  std::span<const uint8_t> content);

  bool damage(ServedMemory& memory, const LazyPiece& piece, const std::string& what);
  PageSource& source_of(const ContentPlace& place) { return *sources_[place.source]; }
  void retire_finished();
  void forget(const ServedMemory& memory);
  void wake() const;
  void stop();
  void lose(const std::string& reason);

  Sources sources_;
  Events events_;
  const cpu_set_t background_;
  uint64_t started_us_ = 0;
  UniqueFd wake_;  // eventfd

  mutable InheritingMutex mutex_;
  std::atomic<int> precedence_ = 0;  // faults wait for the lock
  Memories memories_;
  uint64_t pages_filled_ = 0;  // of memories that are finished
  uint64_t faults_ = 0;
  uint64_t pages_damaged_ = 0;
  uint64_t released_us_ = 0, drained_us_ = 0;
  uint64_t cursor_ = 0;  // where the drain goes on
  DrainPlan plan_;
  size_t drains_ = 0;  // threads that drain
  std::deque<Wanted> wanted_;
  std::vector<Wanted> being_read_;
  std::optional<ContentPlace> ahead_;  // what comes after it is going to be read
  std::condition_variable_any wanted_more_, released_;
  std::atomic<bool> stopping_ = false;
  bool refill_held_ = false;
  std::string loss_;

  // Serving thread only: a page just answered, whose neighbours are likely to be wanted next.
  struct Neighbourhood {
    std::shared_ptr<ServedMemory> memory;
    uint64_t page = 0;
    uint64_t bytes = 0;  // of the window
  };
  std::optional<Neighbourhood> around_;
  uint64_t last_fault_ = 0;
  unsigned in_a_row_ = 0;  // faults, each near the one before
  bool retry_ = false;     // faults are left that an event or lack of memory held up

  std::thread serving_, draining_;
  std::vector<std::thread> helpers_;  // the draining thread's: readers, and more that drain
};

}  // namespace replpage
