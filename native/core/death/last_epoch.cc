#include "core/death/last_epoch.h"

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "core/base/not_this_time.h"
#include "core/base/sys_error.h"
#include "core/death/leaderless_files.h"
#include "core/image/kernel_reader.h"
#include "core/memory/page_ranges.h"

namespace replpage {
namespace {

// Pages copied before the replica runs (about 1.5 ms); denser parts are read lazily.
constexpr uint64_t kLastPagesCopiedMax = 600;
// Signals are dropped from the kill on, which was some time before its first exit stop was seen.
constexpr uint64_t kKillToStopUs = 2'000'000;

void restore_dropped_signals(const GroupContext& context, uint64_t seen_us, GroupImage& image) {
  const DroppedSignals* const dropped = KernelReader::dropped_signals();
  if (dropped == nullptr) return;
  const uint64_t since_ns = (seen_us - kKillToStopUs) * 1000;
  for (ProcessImage& process : image.processes) {
    dropped->restore(context.capture->host_pid_of(process.pid), since_ns, process);
  }
}

// Descriptors do not go to another machine, and a process that dies is not read from there.
bool is_here(const GroupContext& context) { return context.replicas->successor_is_here(); }

void number(const GroupContext& context, GroupImage& image) {
  image.epoch = context.epoch + 1;
  image.generation = context.options.generation;
}

// The keeper takes it up while the pages are looked for.
std::vector<UniqueFd> send_state(GroupContext& context, GroupImage& image) {
  number(context, image);
  std::vector<UniqueFd> open_files;
  if (is_here(context)) {
    open_files = context.capture->take_descriptors(image);
    send_open_files(context, image.epoch, open_files);
  }
  send_last_state(context, image);
  return open_files;
}

// To another machine, where the group's address goes as well. What cannot be taken along is reset.
std::unique_ptr<MovingConnections> take_connections(GroupContext& context, GroupImage& image) {
  const std::string& address = context.options.service_address;
  if (is_here(context) || address.empty()) return nullptr;
  try {
    return std::make_unique<MovingConnections>(address, *context.capture, image);
  } catch (const SysError&) {  // no nf_tables
  } catch (const BadServiceAddress&) {
  }
  return nullptr;
}

// Each page once, ascending for each process.
std::vector<LazyRange> united(std::span<const LazyRange> one, std::span<const LazyRange> other) {
  std::map<int32_t, PageRanges> by_pid;
  for (const auto& ranges : {one, other}) {
    for (const LazyRange& range : ranges) by_pid[range.pid].push_back({range.start, range.end});
  }
  std::vector<LazyRange> lazy;
  for (auto& [pid, ranges] : by_pid) {
    for (const PageRange& range : normal_ranges(std::move(ranges))) {
      lazy.push_back({pid, range.start, range.end});
    }
  }
  return lazy;
}

// The pages written since the last epoch: few are copied, many are read lazily. What was staged for
// an epoch that was under way may be both. All are copied for another machine.
std::vector<LazyRange> take_last_pages(GroupContext& context, const GroupImage& image) {
  if (!is_here(context)) return context.capture->copy_last(image, context.runs, UINT64_MAX);
  std::vector<LazyRange> staged;
  if (context.runs.data_pages() > kLastPagesCopiedMax) staged = context.runs.as_lazy(image);
  const auto dense = context.capture->copy_last(image, context.runs, kLastPagesCopiedMax);
  return united(staged, dense);
}

const OpenFileImage* file_at(const GroupImage& image, size_t table, int fd, uint32_t& position) {
  if (table >= image.file_tables.size()) return nullptr;
  for (const DescriptorImage& descriptor : image.file_tables[table].descriptors) {
    if (descriptor.fd != fd) continue;
    position = descriptor.open_file;
    return &image.open_files.at(position);
  }
  return nullptr;
}

// Whether a file still open in a crashed process may stand for the one of an older epoch. An
// established connection may not: its peer has seen what the epoch has not.
bool still_the_same(const OpenFileImage& then, const OpenFileImage& now) {
  return then.kind == now.kind && then.object == now.object && then.path == now.path &&
         then.identity.device == now.identity.device && then.identity.inode == now.identity.inode &&
         !then.socket.connected && !now.socket.connected;
}

void take_matching_files(GroupContext& context, std::vector<UniqueFd>& matched) {
  const GroupImage& then = context.last_image;
  const GroupImage now = context.capture->capture_state({.slow_state = false,
                                                         .inject = false,
                                                         .with_content = false,
                                                         .refusals = nullptr,
                                                         .unseen_ends = false});
  std::vector<UniqueFd> taken = context.capture->take_descriptors(now);
  for (size_t table = 0; table < then.file_tables.size(); ++table) {
    for (const DescriptorImage& descriptor : then.file_tables[table].descriptors) {
      uint32_t position = 0;
      const OpenFileImage* current = file_at(now, table, descriptor.fd, position);
      if (current == nullptr || matched[descriptor.open_file].valid()) continue;
      if (still_the_same(then.open_files.at(descriptor.open_file), *current)) {
        matched[descriptor.open_file] = std::move(taken.at(position));
      }
    }
  }
}

// The processes looked at must not be forgotten before the look is over.
class EndOfLook {
 public:
  explicit EndOfLook(GroupCapture& capture) : capture_(capture) {}
  ~EndOfLook() {
    try {
      capture_.end_last_look();
    } catch (const std::exception&) {  // the exception that ends the capture tells enough
    }
  }
  EndOfLook(const EndOfLook&) = delete;
  EndOfLook& operator=(const EndOfLook&) = delete;

 private:
  GroupCapture& capture_;
};

// What cannot go to another machine is found here, and not there.
GroupImage read_once(GroupContext& context, bool inject) {
  Refusals refusals;
  GroupImage image =
      context.capture->capture_state({.last = true,
                                      .inject = inject,
                                      .with_content = !is_here(context),
                                      .refusals = is_here(context) ? nullptr : &refusals,
                                      .unseen_ends = !context.options.attach_always});
  if (!refusals.empty()) throw RefusedError(std::move(refusals));
  return image;
}

// Who kills more than the root may be at it still: whoever is killed leaves the stop that it was
// read at, and is read again at its exit stop. Each of them can do so once.
GroupImage read_whole(GroupContext& context, bool inject,
                      const std::function<FreezeResult()>& freeze_again) {
  for (size_t tries_left = context.tree->processes().size() + 1;; --tries_left) {
    try {
      return read_once(context, inject);
    } catch (const NotThisTime& reason) {
      if (tries_left == 0) throw;
      const FreezeResult frozen = freeze_again();
      if (!frozen.frozen) throw NotThisTime(reason.what() + (", and then: " + frozen.reason));
    }
  }
}

// It stands still meanwhile.
constexpr uint64_t kPlannedCommitMs = 10'000;

HandOver commit_there(GroupContext& context, GroupImage image) {
  number(context, image);
  (void)take_last_pages(context, image);
  PageRunList runs = context.runs.fitted(image);
  KeeperLink& keeper = context.replicas->successor();
  keeper.send(MessageType::kStage, PagesMessage{image.epoch, context.staging.put(runs)});
  keeper.send(MessageType::kCommit, ImageMessage{image.epoch, context.staging.put(image)});
  keeper.wait_reply(MessageType::kCommitted, kPlannedCommitMs);
  keeper.send_empty(MessageType::kRehearse);
  const auto rehearsed =
      keeper.wait_reply_as<RehearsedMessage>(MessageType::kRehearsed, kPlannedCommitMs);
  if (!rehearsed.problem.empty()) throw KeeperLost("it cannot run there: " + rehearsed.problem);
  context.runs.clear();
  context.epoch = image.epoch;
  // Last: until then their clients are heard, and what they send is acknowledged. From here to
  // their next life nothing is waited for.
  auto moving = take_connections(context, image);
  if (moving) {
    number(context, image);
    send_last_state(context, image);
  }
  return {std::move(image), {}, {}, true, std::move(moving)};
}

}  // namespace

HandOver capture_last_epoch(GroupContext& context, uint64_t seen_us) {
  const EndOfLook end_of_look(*context.capture);
  context.capture->begin_last_look();
  GroupImage image = read_whole(context, false, [&context] {
    return context.tree->freeze_around_death(context.options.pid, kDeathDeadlineUs);
  });
  restore_dropped_signals(context, seen_us, image);
  auto moving = take_connections(context, image);
  std::vector<UniqueFd> open_files = send_state(context, image);
  context.capture->end_last_look();
  std::vector<LazyRange> lazy = take_last_pages(context, image);
  return {std::move(image), std::move(open_files), std::move(lazy), true, std::move(moving)};
}

// No look beside the capture here: system calls are injected, which write.
HandOver capture_planned_epoch(GroupContext& context) {
  if (is_here(context)) context.replicas->successor().send_empty(MessageType::kDying);
  GroupImage image =
      read_whole(context, true, [&context] { return context.tree->freeze(kDeathDeadlineUs); });
  if (!is_here(context)) return commit_there(context, std::move(image));
  std::vector<UniqueFd> open_files = send_state(context, image);
  std::vector<LazyRange> lazy = take_last_pages(context, image);
  return {std::move(image), std::move(open_files), std::move(lazy), true};
}

HandOver committed_epoch(GroupContext& context) {
  context.runs.clear();
  if (!is_here(context)) return {context.last_image, {}, {}, false};
  std::vector<UniqueFd> matched(context.last_image.open_files.size());
  if (context.options.attach_always && !context.root_gone) {
    try {
      take_matching_files(context, matched);
    } catch (const std::exception&) {  // not to be had: the replica opens them anew
      for (UniqueFd& file : matched) file.reset();
      take_leaderless_sockets(context, matched);
    }
  }
  send_open_files(context, context.last_image.epoch, matched);
  return {context.last_image, std::move(matched), {}, false};
}

}  // namespace replpage
