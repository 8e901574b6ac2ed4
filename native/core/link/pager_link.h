// A group's connection to its pager: requests go out, answers come when they come. Nothing here
// waits for the pager or for the store.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/base/caller_rights.h"
#include "core/channel/pager_messages.h"
#include "core/link/pager_process.h"
#include "core/store/store_key.h"

namespace replpage {

struct PagerOptions {
  std::string executable;  // path of replpage-pager
  std::string store;       // directory
  std::string group;
  uint64_t group_id = 0;
  uint64_t generation = 0;
  std::shared_ptr<const StoreKey> key;  // null: nothing is encrypted
  bool compress = true;
  uint64_t bytes_max = UINT64_MAX;     // of the group in the store
  std::optional<CallerRights> rights;  // it runs with these; none: with ours
  uint32_t segment_bytes_max = 0;      // 0: the usual
  uint32_t first_segment = 1;          // no number below it is used
  uint64_t writer = 0;                 // 0: a new one
  // Doubles with every failure; starts anew when something was written.
  uint64_t restart_delay_us = 250'000, restart_delay_max_us = 30'000'000;
  bool allow_memory_file_systems = false;  // for tests
};

// A number that no other writer has. Throws SysError.
uint64_t random_writer();

// The store was opened, also again by a pager that was started anew.
struct PagerOpened {
  PagerUsage usage;
  std::shared_ptr<const UniqueFd> directory;  // of the generation's segments
};
// What was under way is answered by a PagerFailed of its own before this.
struct PagerEnded {
  std::string reason;
};
using PagerNews = std::variant<PagerOpened, PagerWrittenMessage, PagerDoneMessage,
                               PagerFailedMessage, PagerEnded>;

// For one thread. Starts the pager at once, and again, after a growing delay, when it has ended or
// could not open the store.
class PagerLink {
 public:
  static constexpr size_t kBatchesMax = 2;  // written at the same time

  explicit PagerLink(PagerOptions options);

  // Where content is read from. It is kept open until it is forgotten, for pagers to come.
  void set_source(uint32_t source, UniqueFd descriptor);
  void forget_source(uint32_t source);

  // The store is open and a batch would be taken.
  [[nodiscard]] bool ready() const;
  // Tickets are never 0. nullopt: not ready(). Every ticket is answered by exactly one
  // PagerWrittenMessage, PagerDoneMessage or PagerFailedMessage. At most kPagerRunsMax runs with
  // kPagerPagesMax pages.
  std::optional<uint64_t> submit(uint64_t epoch, std::vector<PagerRun> runs);

  // nullopt: the store is not open.
  std::optional<uint64_t> drop_segments(std::vector<uint32_t> segments);
  std::optional<uint64_t> remove_generation(uint64_t generation);
  // `source` has the state that the manifest tells of.
  std::optional<uint64_t> checkpoint(Bytes manifest, uint32_t source, bool keep);
  std::optional<uint64_t> ask_usage();
  std::optional<uint64_t> probe(uint64_t nonce, PagerProbe step);

  // What has come in; also sends what could not be sent yet and starts what is to be started. Call
  // it now and then, and when fd() is readable.
  std::vector<PagerNews> poll();
  // -1 where there is none just now. Another one after every PagerEnded.
  [[nodiscard]] int fd() const;

  // How long the oldest request that is not answered has been under way, in us; 0: there is none. A
  // store that hangs is seen by this alone.
  [[nodiscard]] uint64_t since_us() const;

  // Kills the pager, which may hang. poll() tells of it, and starts another one after a delay.
  void kill_pager(const std::string& reason);

  // 0: none runs just now.
  [[nodiscard]] pid_t pid() const;
  // What is known of the store; kept while no pager runs.
  [[nodiscard]] const PagerUsage& usage() const { return usage_; }

 private:
  struct Request {
    uint64_t ticket = 0;
    PagerMessageType type{};
    uint64_t since_us = 0;
  };
  struct Packet {
    PagerMessageType type{};
    Bytes body;
    int source = -1;  // in sources_, whose descriptor goes with it; -1: none
  };

  void start();
  void start_when_due();
  void configure();
  template <class T>
  uint64_t ask(PagerMessageType type, T message);
  template <class T>
  void queue(PagerMessageType type, T message, int source = -1);
  void send_source(uint32_t source);
  void send_queued();
  bool can_send() const;
  void receive();
  void take(ReceivedMessage message);
  bool settle(uint64_t ticket);
  void lose(const std::string& reason);
  void delay_next_start();

  PagerOptions options_;
  uint64_t writer_ = 0;
  std::optional<PagerProcess> process_;
  bool open_ = false;
  PagerUsage usage_;
  std::map<uint32_t, UniqueFd> sources_;
  std::vector<uint32_t> sent_sources_;  // that this pager has
  std::deque<Request> requests_;        // under way, oldest first
  std::deque<Packet> packets_;          // not sent yet
  std::vector<PagerNews> news_;
  uint64_t last_ticket_ = 0;
  uint64_t delay_us_ = 0;  // before the next start
  uint64_t next_start_us_ = 0;
};

}  // namespace replpage
