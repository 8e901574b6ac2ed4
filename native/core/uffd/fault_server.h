// Serves the missing pages of running processes from a dying or frozen one, and fetches the rest in
// the background until nothing is missing.
//
// Two threads: one waits for faults and events and answers them at once, the other drains. Threads
// that fault are never answered with anything but the page's content: when the source cannot be
// read they stay blocked, and the owner must kill them.
#pragma once

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/uffd/served_memory.h"

namespace replpage {

class FaultServer {
 public:
  struct Served {
    Uffd uffd;  // MISSING with kLazyFeatures registered over the ranges; non-blocking
    std::vector<PageRange> ranges;
    size_t source = 0;  // position in `sources`
  };
  // Called on the server's threads, each at most once.
  struct Events {
    std::function<void()> drained;
    std::function<void(const std::string& reason)> lost;
  };
  struct Figures {
    uint64_t pages_left = 0, pages_filled = 0, faults = 0;
    uint64_t drained_us = 0;  // from the start; 0: not drained yet
  };

  // `sources` are descriptors of /proc/PID/mem. Serving starts at once. Throws SysError.
  FaultServer(std::vector<Served> served, std::vector<UniqueFd> sources, Events events);
  // Stops serving. Unless everything is drained, the processes must be gone: closing the
  // userfaultfds lets the kernel fill what is missing with zeros.
  ~FaultServer();
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  [[nodiscard]] Figures figures() const;
  // Why the source was lost; empty: it was not.
  [[nodiscard]] std::string loss() const;

 private:
  // Takes the lock ahead of the background drain.
  class Precedence;

  using Memories = std::vector<std::shared_ptr<ServedMemory>>;
  // What the drain reads next: decided under the lock, read without it.
  struct Chunk {
    std::shared_ptr<ServedMemory> memory;
    LazyPiece piece;
    uint64_t events_applied = 0;
  };

  void serve();
  // Those served now, and what to poll for them.
  Memories list_polled(std::vector<pollfd>& items);
  bool wait_for_faults(std::vector<pollfd>& items);
  void read_messages(const std::shared_ptr<ServedMemory>& memory);
  void answer_faults(const std::shared_ptr<ServedMemory>& memory);
  FillState answer(ServedMemory& memory, uint64_t page);
  void read_around();
  void drain();
  std::optional<Chunk> next_chunk();
  bool fill_piece(const Chunk& chunk, uint64_t offset, std::span<const uint8_t> content);
  void read_source(const ServedMemory& memory, uint64_t address, std::span<uint8_t> buffer) const;
  void retire_finished();
  void forget(const ServedMemory& memory);
  void wake() const;
  void lose(const std::string& reason);

  std::vector<UniqueFd> sources_;
  Events events_;
  uint64_t started_us_ = 0;
  UniqueFd wake_;  // eventfd

  mutable std::mutex mutex_;
  std::atomic<int> precedence_ = 0;  // faults wait for the lock
  Memories memories_;
  uint64_t pages_filled_ = 0;  // of memories that are finished
  uint64_t faults_ = 0;
  uint64_t drained_us_ = 0;
  std::atomic<bool> stopping_ = false;
  std::string loss_;

  // Serving thread only: a page just answered, whose neighbours are likely to be wanted next.
  struct Neighbourhood {
    std::shared_ptr<ServedMemory> memory;
    uint64_t page = 0;
  };
  std::optional<Neighbourhood> around_;
  uint64_t last_fault_ = 0;
  bool retry_ = false;  // faults are left that an event or lack of memory held up

  // Draining thread only.
  uint64_t cursor_ = 0;

  std::thread serving_, draining_;
};

}  // namespace replpage
