#include "pager/pager_server.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <strings.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <optional>
#include <thread>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/channel/channel.h"
#include "core/channel/pager_messages.h"
#include "core/store/segment_writer.h"
#include "pager/checkpoint_files.h"
#include "pager/idle_worker.h"
#include "pager/page_source.h"

namespace replpage {
namespace {

// Ends the process as soon as nobody is there any more to be answered, whatever it waits for.
void end_with(int channel) {
  std::thread([channel] {
    for (;;) {
      pollfd item{.fd = channel, .events = POLLRDHUP, .revents = 0};
      if (::poll(&item, 1, -1) > 0) ::_exit(0);
    }
  }).detach();
}

// What this program is killed for rather than another.
void prefer_to_be_killed() {
  const UniqueFd file(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (file.valid()) (void)!::write(file.get(), "500", 3);
}

void become(const PagerConfigureMessage& message) {
  const std::vector<gid_t> groups(message.groups.begin(), message.groups.end());
  if (::getuid() != message.uid || ::getgid() != message.gid) {
    if (::setgroups(groups.size(), groups.data()) != 0 ||
        ::setresgid(message.gid, message.gid, message.gid) != 0 ||
        ::setresuid(message.uid, message.uid, message.uid) != 0) {
      throw SysError::from_errno("take the rights of the group's owner");
    }
  }
  // The owner must not read the store's key out of this process.
  if (::prctl(PR_SET_DUMPABLE, 0) != 0) throw SysError::from_errno("prctl(PR_SET_DUMPABLE)");
}

uint64_t cpu_us() { return clock_us(CLOCK_PROCESS_CPUTIME_ID); }

class PagerServer {
 public:
  explicit PagerServer(int channel) : channel_(UniqueFd(channel)) {}

  void serve() {
    for (;;) {
      std::optional<ReceivedMessage> message = channel_.receive();
      if (!message && channel_.closed()) return;
      if (message) handle(*message);
    }
  }

 private:
  void handle(ReceivedMessage& message) {
    switch (pager_type(message.type)) {
      case PagerMessageType::kConfigure:
        return answer(0, [&] { configure(message); });
      case PagerMessageType::kSource:
        if (message.descriptors.size() != 1) throw FormatError("a source has one descriptor");
        sources_[decode<PagerSourceMessage>(message.body).source] =
            std::move(message.descriptors[0]);
        return;
      case PagerMessageType::kForgetSource:
        sources_.erase(decode<PagerSourceMessage>(message.body).source);
        return;
      case PagerMessageType::kWrite: {
        const auto request = decode<PagerWriteMessage>(message.body);
        return answer(request.ticket, [&] { write(request); });
      }
      case PagerMessageType::kDrop: {
        const auto request = decode<PagerDropMessage>(message.body);
        return answer(request.ticket, [&] {
          idle_.run([&] {
            for (const uint32_t number : request.segments) writer().drop_segment(number);
          });
          done(PagerMessageType::kDone, request.ticket);
        });
      }
      case PagerMessageType::kRemove: {
        const auto request = decode<PagerRemoveMessage>(message.body);
        return answer(request.ticket, [&] { remove(request); });
      }
      case PagerMessageType::kUsage: {
        const auto request = decode<PagerTicket>(message.body);
        return answer(request.ticket, [&] {
          (void)writer();
          done(PagerMessageType::kDone, request.ticket);
        });
      }
      case PagerMessageType::kProbe: {
        const auto request = decode<PagerProbeMessage>(message.body);
        return answer(request.ticket, [&] { probe(request); });
      }
      case PagerMessageType::kCheckpoint: {
        const auto request = decode<PagerCheckpointMessage>(message.body);
        return answer(request.ticket, [&] { checkpoint(request); });
      }
      case PagerMessageType::kFind:
        return answer(0, [&] { find(message); });
      case PagerMessageType::kRemoveFound:
        return answer(0, [&] { remove_checkpoints_of(message); });
      case PagerMessageType::kFetch: {
        const auto request = decode<PagerFetchMessage>(message.body);
        return answer(request.ticket, [&] { fetch(request); });
      }
      default:
        throw FormatError("the pager got a message that is not for it");
    }
  }

  // Runs the work, which answers by itself when it succeeds.
  template <class Work>
  void answer(uint64_t ticket, Work work) {
    try {
      work();
    } catch (const StoreError& error) {
      fail(ticket, error.kind(), error.error(), error.what());
    } catch (const SysError& error) {
      fail(ticket, StoreFailure::kIo, error.error(), error.what());
    }
  }

  void fail(uint64_t ticket, StoreFailure kind, int error, const char* reason) {
    send(PagerMessageType::kFailed,
         PagerFailedMessage{.ticket = ticket,
                            .kind = kind,
                            .error = error,
                            .reason = std::string(reason).substr(0, 2000)});
  }

  // The other end may take its time: it asked for at most a few answers.
  template <class T>
  void send(PagerMessageType type, T message, std::span<const int> descriptors = {}) {
    const Bytes body = encode(message);
    for (;;) {
      try {
        return channel_.send(on_wire(type), body, descriptors);
      } catch (const SysError& error) {
        if (error.error() != ETIMEDOUT) throw;
      }
    }
  }

  void done(PagerMessageType type, uint64_t ticket, bool found = false) {
    send(type, PagerDoneMessage{
                   .ticket = ticket, .found = found, .usage = usage(), .id = {}, .bytes = 0});
  }

  void take_key(PagerConfigureMessage& request) {
    key_.reset();
    if (request.key.empty()) return;
    if (request.key.size() != kStoreKeyBytes) throw FormatError("the store's key is not 32 bytes");
    key_ = StoreKey::from_bytes(std::span<const uint8_t, kStoreKeyBytes>(request.key));
    ::explicit_bzero(request.key.data(), request.key.size());
  }

  [[nodiscard]] const StoreKey* key() const { return key_ ? &*key_ : nullptr; }

  void configure(ReceivedMessage& message) {
    auto request = decode<PagerConfigureMessage>(message.body);
    ::explicit_bzero(message.body.data(), message.body.size());
    take_key(request);
    if (request.as_owner) become(request);
    store_ = {.path = request.store,
              .writing = true,
              .allow_memory_file_systems = request.allow_memory_file_systems};
    of_ = {.group = request.group, .group_id = request.group_id, .generation = request.generation};
    WriterOptions options{.store = store_,
                          .of = of_,
                          .writer = request.writer,
                          .again = true,  // the random number tells whether it is ours
                          .first_segment = request.first_segment,
                          .key = key(),
                          .compress = request.compress,
                          .bytes_max = request.bytes_max};
    if (request.segment_bytes_max != 0) options.segment_bytes_max = request.segment_bytes_max;
    writer_.reset();
    idle_.run([&] { writer_ = std::make_unique<SegmentWriter>(options); });
    const int directory = writer_->directory();
    send(PagerMessageType::kOpened,
         PagerDoneMessage{.ticket = 0, .found = false, .usage = usage(), .id = {}, .bytes = 0},
         {&directory, 1});
  }

  SegmentWriter& writer() {
    if (writer_) return *writer_;
    throw StoreError(StoreFailure::kGone, "page store: it is not open");
  }

  PagerUsage usage() const {
    if (!writer_) return {};
    return {.bytes = writer_->bytes_on_disk(),
            .segments = writer_->segments(),
            .next_segment = writer_->next_segment()};
  }

  void write(const PagerWriteMessage& request) {
    const uint64_t start_us = now_us();
    const uint64_t start_cpu_us = cpu_us();
    PagerWrittenMessage written;
    written.ticket = request.ticket;
    written.epoch = request.epoch;
    check(request);
    try {
      for (const PagerRun& run : request.runs) write_run(run, written);
      idle_.run([&] { writer().sync(); });
    } catch (...) {
      if (writer_) writer_->discard();
      throw;
    }
    written.usage = usage();
    written.cpu_us = cpu_us() - start_cpu_us;
    written.took_us = now_us() - start_us;
    send(PagerMessageType::kWritten, std::move(written));
  }

  void check(const PagerWriteMessage& request) const {
    uint64_t pages = 0;
    for (const PagerRun& run : request.runs) {
      pages += run.pages;
      if (run.address % kPageSize != 0 || run.offset % kPageSize != 0 || run.reserved != 0) {
        throw FormatError("the pager was sent a run that is none");
      }
      if (!sources_.contains(run.source)) {
        throw FormatError("the pager was not sent the source of a run");
      }
    }
    if (pages > kPagerPagesMax) throw FormatError("the pager was sent too many pages at once");
  }

  void write_run(const PagerRun& run, PagerWrittenMessage& written) {
    const PagesRead read = read_pages(
        sources_.at(run.source).get(), run.offset, run.pages, room_,
        [&](uint32_t first, std::span<const uint8_t> content) {
          idle_.run([&] { append(run.pid, run.address + first * kPageSize, content, written); });
        });
    written.zero_pages += read.zero;
    written.unreadable_pages += read.unreadable;
  }

  void append(int32_t pid, uint64_t address, std::span<const uint8_t> content,
              PagerWrittenMessage& written) {
    while (!content.empty()) {
      const size_t bytes = std::min<size_t>(content.size(), kRecordPagesMax * kPageSize);
      const StoreLocation location =
          writer().append(pid, address, written.epoch, content.first(bytes));
      written.runs.push_back({.location = location.pack(),
                              .address = address,
                              .pid = pid,
                              .pages = static_cast<uint32_t>(bytes / kPageSize)});
      address += bytes;
      content = content.subspan(bytes);
    }
  }

  void remove(const PagerRemoveMessage& request) {
    (void)writer();
    idle_.run([&] {
      if (request.generation != of_.generation)
        return writer().remove_generation(request.generation);
      writer_.reset();
      remove_generation(open_store(store_).get(), store_.path, of_);
    });
    done(PagerMessageType::kDone, request.ticket);
  }

  int source(uint32_t number) const {
    const auto found = sources_.find(number);
    if (found == sources_.end()) throw FormatError("the pager was not sent what it is to use");
    return found->second.get();
  }

  void checkpoint(const PagerCheckpointMessage& request) {
    (void)writer();
    WrittenCheckpoint written;
    const CheckpointOrder order{
        .store = store_, .message = request, .state = source(request.source), .key = key()};
    idle_.run([&] { written = make_checkpoint(writer(), order); });
    send(PagerMessageType::kDone, PagerDoneMessage{.ticket = request.ticket,
                                                   .found = true,
                                                   .usage = usage(),
                                                   .id = written.id,
                                                   .bytes = written.linked_bytes});
  }

  void find(ReceivedMessage& message) {
    auto request = decode<PagerFindMessage>(message.body);
    ::explicit_bzero(message.body.data(), message.body.size());
    take_key(request.store);
    if (request.store.as_owner) become(request.store);
    const StoreOptions store{.path = request.store.store,
                             .writing = false,
                             .allow_memory_file_systems = request.store.allow_memory_file_systems};
    restored_ = std::make_unique<CheckpointPages>(store, request.store.group, request.id, key());
    FoundCheckpoint& found = restored_->found();
    const int directory = found.directory.get();
    send(PagerMessageType::kFound,
         PagerFoundMessage{.id = found.id, .manifest = encode(found.manifest)}, {&directory, 1});
  }

  void remove_checkpoints_of(ReceivedMessage& message) {
    const auto request = decode<PagerFindMessage>(message.body);
    if (request.store.as_owner) become(request.store);
    const StoreOptions store{.path = request.store.store,
                             .writing = true,
                             .allow_memory_file_systems = request.store.allow_memory_file_systems};
    const UniqueFd opened = open_store(store);
    const RemovedCheckpoints removed =
        remove_checkpoints(opened.get(), store.path, request.store.group, request.id);
    PagerDoneMessage answer;
    for (const std::string& id : removed.ids) answer.id += (answer.id.empty() ? "" : " ") + id;
    answer.bytes = removed.freed_bytes;
    send(PagerMessageType::kDone, std::move(answer));
  }

  void fetch(const PagerFetchMessage& request) {
    if (!restored_) throw FormatError("the pager was asked for pages of no checkpoint");
    restored_->fetch(request.runs, source(request.source));
    done(PagerMessageType::kDone, request.ticket);
  }

  void probe(const PagerProbeMessage& request) {
    (void)writer();
    bool found = false;
    idle_.run([&] {
      const UniqueFd store = open_store(store_);
      if (request.step == PagerProbe::kWrite) write_probe(store.get(), store_.path, request.nonce);
      if (request.step == PagerProbe::kRemove) remove_probe(store.get(), request.nonce);
      found = request.step == PagerProbe::kCheck &&
              check_probe(store.get(), store_.path, request.nonce);
    });
    done(PagerMessageType::kDone, request.ticket, found);
  }

  Channel channel_;
  IdleWorker idle_;
  StoreOptions store_;
  GenerationName of_;
  std::optional<StoreKey> key_;
  std::unique_ptr<SegmentWriter> writer_;
  std::unique_ptr<CheckpointPages> restored_;
  std::map<uint32_t, UniqueFd> sources_;
  std::vector<uint8_t> room_;
};

}  // namespace

int run_pager(int channel) {
  (void)::prctl(PR_SET_NAME, "replpage-pager");
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  run_as_others();
  prefer_to_be_killed();
  (void)::prctl(PR_SET_DUMPABLE, 0);  // from here on its files in /proc are root's
  (void)::fcntl(channel, F_SETFD, FD_CLOEXEC);
  end_with(channel);
  try {
    PagerServer(channel).serve();
  } catch (const std::exception&) {
    return 1;  // the other end sees that it ended; what it was told stays true
  }
  return 0;
}

}  // namespace replpage
