#include "core/group/group_paging.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <variant>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/group/group_store.h"
#include "core/paging/pages_to_run.h"

namespace replpage {
namespace {

// A store that has not answered for so long counts as hung, and its pager is killed after the
// second time; it may be a dead mount that only a new process gets rid of.
constexpr uint64_t kHungUs = 5'000'000;
constexpr uint64_t kKillUs = 60'000'000;
constexpr uint64_t kTryAgainUs = 10'000'000;
// Generations before this one that may have left something behind.
constexpr uint64_t kPast = 8;

StoreMessage store_message(const GroupOptions& options, const StoreKey* key) {
  StoreMessage message{.key = {},
                       .path = options.paging->store,
                       .name = options.name,
                       .group_id = options.paging->group_id,
                       .generation = options.generation};
  if (key != nullptr) message.key.assign(key->bytes().begin(), key->bytes().end());
  return message;
}

}  // namespace

GroupPaging::GroupPaging(const GroupOptions& options)
    : options_(*options.paging),
      key_(load_store_key(options_.key_path)),
      store_(store_message(options, key_.get())),
      pager_(pager_options(options, key_)),
      pace_(options_.cold_after_us) {}

void GroupPaging::wait_open(uint64_t wait_us, const std::atomic<bool>* cancelled) {
  for (const uint64_t ends = now_us() + wait_us; now_us() < ends; ::usleep(1000)) {
    if (cancelled != nullptr && *cancelled) break;
    for (const PagerNews& news : pager_.poll()) {
      std::visit([this](const auto& one) { take(one); }, news);
      if (std::holds_alternative<PagerOpened>(news)) return;
      if (const auto* failed = std::get_if<PagerFailedMessage>(&news)) {
        throw StoreError(failed->kind, failed->reason, failed->error);
      }
      if (const auto* ended = std::get_if<PagerEnded>(&news)) {
        throw StoreError(StoreFailure::kIo, "page store: the pager ended: " + ended->reason);
      }
    }
  }
  throw StoreError(StoreFailure::kIo, "page store: " + options_.store + " does not answer");
}

// ---- what the replica has

void GroupPaging::fit(const GroupImage& image) {
  for (const ProcessImage& process : image.processes) {
    table_.fit(process.pid, process.mappings, pages_to_run(process));
  }
}

void GroupPaging::add_cold_runs(const GroupImage& image, PageRunList& list) {
  forget_gone(image);
  fit(image);
  table_.note_runs(list.runs);
  epoch_ = image.epoch;
  sent_ = false;
  const size_t before = list.runs.size();
  // Of an epoch that was made up, and not sent: the replica knows nothing of them.
  for (const MovedPages& one : std::exchange(untold_, {})) (void)add_cold_run(one, list);
  if (replica_knows_) {
    for (const PageGroup& group : std::exchange(stored_, {})) {
      evicted_bytes_ += add_cold_run({group, group.location}, list);
    }
  }
  for (const MovedPages& moved : cleaner_.take_moved()) moved_bytes_ += add_cold_run(moved, list);
  const auto cold = std::span(list.runs).subspan(before);
  table_.note_runs(cold);
  for (const PageRun& run : cold) {
    const PageRange range{run.address, run.address + run.length};
    untold_.push_back({{run.pid, range, true, run.data_offset}, run.data_offset});
  }
  dead_ = dead_segments();
}

void GroupPaging::note_sent() {
  sent_ = true;
  untold_.clear();
}

std::vector<uint32_t> GroupPaging::dead_segments() const {
  std::vector<uint32_t> dead;
  for (const uint32_t segment : segments_) {
    const bool live = segment == newest_segment() || table_.live_pages().contains(segment);
    if (!live) dead.push_back(segment);
  }
  return dead;
}

uint64_t GroupPaging::newest_segment() const { return segments_.empty() ? 0 : *segments_.rbegin(); }

// What was written since it was stored is at that location no more. Returns the bytes of the rest.
uint64_t GroupPaging::add_cold_run(const MovedPages& pages, PageRunList& list) {
  uint64_t bytes = 0;
  const PageGroup& from = pages.from;
  for (uint64_t page = from.range.start; page < from.range.end; page += kPageSize) {
    const uint64_t offset = page - from.range.start;
    const PageGroup one{from.pid, {page, page + kPageSize}, true, from.location + offset};
    const uint64_t location = pages.to + offset;
    if (table_.note_moved(one, location) == 0) continue;
    bytes += kPageSize;
    if (!list.runs.empty()) {
      PageRun& last = list.runs.back();
      if (last.kind == PageRunKind::kCold && last.pid == from.pid &&
          last.address + last.length == page && last.data_offset + last.length == location) {
        last.length += kPageSize;
        continue;
      }
    }
    list.runs.push_back({.pid = from.pid,
                         .object = 0,
                         .kind = PageRunKind::kCold,
                         .address = page,
                         .length = kPageSize,
                         .data_offset = location});
  }
  return bytes;
}

void GroupPaging::note_committed() {
  std::vector<uint32_t> dead = std::exchange(dead_, {});
  // One request at a time, and not with every epoch where the store fails.
  if (dead.empty() || dropped_ || state_ == StoreState::kFailing) return;
  if (const auto ticket = pager_.drop_segments(dead)) dropped_ = Dropped{*ticket, std::move(dead)};
}

void GroupPaging::forget_gone(const GroupImage& image) {
  for (const int32_t pid : table_.pids()) {
    const bool lives =
        std::any_of(image.processes.begin(), image.processes.end(),
                    [pid](const ProcessImage& process) { return process.pid == pid; });
    if (lives) continue;
    table_.forget(pid);
    samplers_.erase(pid);
    if (sources_.erase(pid) != 0) pager_.forget_source(static_cast<uint32_t>(pid));
  }
}

std::optional<GroupPaging::StoreForReplica> GroupPaging::store_for_replica() {
  if (replica_knows_ || !directory_.valid()) return std::nullopt;
  replica_knows_ = true;
  return StoreForReplica{store_, std::move(directory_)};
}

// ---- one turn

PagingReport GroupPaging::turn(const GroupImage& image, const std::map<int32_t, pid_t>& host_pids,
                               const PagingOrder& order) {
  take_news();
  if (order.sample_now) next_sample_us_ = 0;
  sample_when_due(image, host_pids);
  // First, since evictions take every place of a slow pager; of its own it has one batch at most.
  clean(host_pids);
  evict(host_pids, order);
  bring_back(order);
  return report();
}

void GroupPaging::take_news() {
  for (const PagerNews& news : pager_.poll()) {
    std::visit([this](const auto& one) { take(one); }, news);
  }
  // Whether there is room again, or the error has passed, only another try tells.
  const bool failed = state_ == StoreState::kFull || state_ == StoreState::kFailing;
  if (failed && pager_.pid() != 0 && now_us() - trouble_us_ > kTryAgainUs) state_ = StoreState::kOk;
  const uint64_t silent_us = pager_.since_us();
  if (silent_us > kKillUs) return pager_.kill_pager("the page store does not answer");
  if (silent_us > kHungUs) {
    state_ = StoreState::kHung;
    trouble_ =
        "the page store has not answered for " + std::to_string(silent_us / 1'000'000) + " s";
  }
}

// Whatever ran on from an earlier generation has all its pages by now, or it would not be protected
// again.
void GroupPaging::take(const PagerOpened& opened) {
  const uint64_t oldest = store_.generation > kPast ? store_.generation - kPast : 1;
  for (uint64_t past = oldest; !replica_knows_ && past < store_.generation; ++past) {
    (void)pager_.remove_generation(past);
  }
  state_ = StoreState::kOk;
  trouble_.clear();
  if (!replica_knows_ && opened.directory) {
    directory_.reset(::fcntl(opened.directory->get(), F_DUPFD_CLOEXEC, 0));
  }
}

void GroupPaging::take(const PagerWrittenMessage& written) {
  if (forgotten_.erase(written.ticket) != 0) {
    // Content that nobody asked for any more: only its segments are of interest.
    for (const PagerWrittenRun& run : written.runs) {
      segments_.insert(static_cast<uint32_t>(segment_of(run.location)));
    }
    return;
  }
  state_ = StoreState::kOk;
  trouble_.clear();
  pager_cpu_us_ += written.cpu_us;
  const bool moved = cleaner_.is_own(written.ticket);
  if (written.unreadable_pages != 0) {
    // Another address space by now (execve): its descriptor is made anew.
    const auto evicted = batches_.find(written.ticket);
    if (moved) forget_sources(cleaner_.under_way());
    if (evicted != batches_.end()) forget_sources(evicted->second);
  }
  std::vector<PageGroup> stored;
  std::map<int32_t, std::vector<PageRange>> durable;
  for (const PagerWrittenRun& run : written.runs) {
    const uint64_t segment = segment_of(run.location);
    segments_.insert(static_cast<uint32_t>(segment));
    cleaner_.note_written(segment, run.pages);
    written_bytes_ += run.pages * kPageSize;
    const PageRange range{run.address, run.address + run.pages * kPageSize};
    durable[run.pid].push_back(range);
    stored.push_back({run.pid, range, true, run.location});
  }
  if (moved) return cleaner_.finish(stored);
  for (const PageGroup& group : stored) {
    const std::vector<PageGroup> kept = table_.note_stored(group);
    stored_.insert(stored_.end(), kept.begin(), kept.end());
  }
  give_back(written.ticket, durable);
}

void GroupPaging::forget_sources(std::span<const PageGroup> of) {
  for (const PageGroup& group : of) {
    if (sources_.erase(group.pid) != 0) pager_.forget_source(static_cast<uint32_t>(group.pid));
  }
}

void GroupPaging::take(const PagerDoneMessage& done) {
  forgotten_.erase(done.ticket);
  if (!dropped_ || dropped_->ticket != done.ticket) return;
  for (const uint32_t segment : dropped_->segments) {
    segments_.erase(segment);
    cleaner_.note_removed(segment);
  }
  dropped_.reset();
}

void GroupPaging::take(const PagerFailedMessage& failed) {
  forgotten_.erase(failed.ticket);
  // Its segments are dead as before: they are named with one of the next epochs again.
  if (dropped_ && dropped_->ticket == failed.ticket) dropped_.reset();
  state_ = failed.kind == StoreFailure::kFull ? StoreState::kFull : StoreState::kFailing;
  trouble_ = failed.reason;
  trouble_us_ = now_us();
  if (cleaner_.is_own(failed.ticket)) cleaner_.finish({});
  give_back(failed.ticket, {});
}

void GroupPaging::take(const PagerEnded& ended) {
  state_ = StoreState::kFailing;
  trouble_ = ended.reason;
  trouble_us_ = now_us();
}

// What of a batch did not become stored stays resident.
void GroupPaging::give_back(uint64_t ticket,
                            const std::map<int32_t, std::vector<PageRange>>& durable) {
  const auto batch = batches_.find(ticket);
  if (batch == batches_.end()) return;
  for (const PageGroup& group : batch->second) {
    const auto of_process = durable.find(group.pid);
    const PageRanges written =
        of_process == durable.end() ? PageRanges{} : normal_ranges(of_process->second);
    for (const PageRange& rest : subtract_ranges({&group.range, 1}, written)) {
      table_.note_not_stored({group.pid, rest, false, 0});
    }
  }
  batches_.erase(batch);
}

void GroupPaging::sample_when_due(const GroupImage& image,
                                  const std::map<int32_t, pid_t>& host_pids) {
  const uint64_t now = now_us();
  if (now < next_sample_us_) return;
  AccessSample all;
  for (const ProcessImage& process : image.processes) {
    const auto host_pid = host_pids.find(process.pid);
    if (host_pid == host_pids.end()) continue;
    const AccessSample taken = sample(process, host_pid->second);
    all.looked_bytes += taken.looked_bytes;
    all.cleared_bits += taken.cleared_bits;
    all.look_us += taken.look_us;
    all.clear_us += taken.clear_us;
  }
  pace_.note(all);
  sample_us_ = all.look_us + all.clear_us;
  ++samples_;
  next_sample_us_ = now + pace_.period_us();
}

AccessSample GroupPaging::sample(const ProcessImage& process, pid_t host_pid) {
  Sampler& sampler = samplers_[process.pid];
  bool aged = false;
  // Only with what was seen touched: where nobody can look, everything would be cold in the end.
  const auto grow_older = [&] {
    if (!std::exchange(aged, true)) table_.grow_older(process.pid);
  };
  try {
    if (!sampler.tracker || sampler.host_pid != host_pid) {
      sampler = {host_pid, make_access_tracker(host_pid, options_.tracker)};
    }
    tracker_name_ = name_of(sampler.tracker->kind());
    const AccessSample taken =
        sampler.tracker->sample(process.mappings, [&](std::span<const PageRange> touched) {
          grow_older();
          table_.note_touched(process.pid, touched);
        });
    grow_older();
    return taken;
  } catch (const SysError& error) {
    // As a rule it is gone, or executes something else: the next sample begins anew.
    sampler.tracker.reset();
    tracker_name_ = std::string("none (") + error.what() + ")";
    return {};
  }
}

bool GroupPaging::know_source(int32_t pid, const std::map<int32_t, pid_t>& host_pids) {
  if (sources_.contains(pid)) return true;
  const auto host_pid = host_pids.find(pid);
  if (host_pid == host_pids.end()) return false;
  const std::string path = "/proc/" + std::to_string(host_pid->second) + "/mem";
  UniqueFd memory(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!memory.valid()) return false;
  pager_.set_source(static_cast<uint32_t>(pid), std::move(memory));
  sources_.insert(pid);
  return true;
}

void GroupPaging::evict(const std::map<int32_t, pid_t>& host_pids, const PagingOrder& order) {
  uint64_t pages_left = order.evict_pages_max;
  while (pages_left != 0 && pager_.ready()) {
    const auto groups =
        table_.oldest(order.evict_age, std::min<uint64_t>(pages_left, kPagerPagesMax));
    std::vector<PageGroup> batch;
    for (const PageGroup& group : without_busy(groups)) {
      if (group.stored || batch.size() == kPagerRunsMax) continue;
      batch.push_back(group);
      pages_left -= group.range.pages();
    }
    if (batch.empty() || !submit(batch, host_pids)) return;
  }
}

// Pages of a batch that is under way may have been written since, and be old enough again: its
// answer, of their old content, must not be taken for that of another batch.
std::vector<PageGroup> GroupPaging::without_busy(std::span<const PageGroup> groups) const {
  std::map<int32_t, std::vector<PageRange>> busy;
  for (const auto& [ticket, batch] : batches_) {
    for (const PageGroup& group : batch) busy[group.pid].push_back(group.range);
  }
  std::map<int32_t, PageRanges> sorted;
  for (auto& [pid, ranges] : busy) sorted.emplace(pid, normal_ranges(std::move(ranges)));
  std::vector<PageGroup> free;
  for (const PageGroup& group : groups) {
    const auto of_process = sorted.find(group.pid);
    if (of_process == sorted.end()) {
      free.push_back(group);
      continue;
    }
    for (const PageRange& rest : subtract_ranges({&group.range, 1}, of_process->second)) {
      const uint64_t offset = rest.start - group.range.start;
      free.push_back({group.pid, rest, group.stored, group.stored ? group.location + offset : 0});
    }
  }
  return free;
}

std::vector<PagerRun> GroupPaging::runs_of(std::span<const PageGroup> groups,
                                           const std::map<int32_t, pid_t>& host_pids,
                                           std::vector<PageGroup>& batch) {
  std::vector<PagerRun> runs;
  for (const PageGroup& group : groups) {
    if (runs.size() == kPagerRunsMax || !know_source(group.pid, host_pids)) continue;
    runs.push_back({.address = group.range.start,
                    .offset = group.range.start,
                    .pid = group.pid,
                    .source = static_cast<uint32_t>(group.pid),
                    .pages = static_cast<uint32_t>(group.range.pages()),
                    .reserved = 0});
    batch.push_back(group);
  }
  return runs;
}

bool GroupPaging::submit(std::span<const PageGroup> groups,
                         const std::map<int32_t, pid_t>& host_pids) {
  std::vector<PageGroup> batch;
  std::vector<PagerRun> runs = runs_of(groups, host_pids, batch);
  if (runs.empty()) return false;
  // Before anything is read: a write from now on shows.
  for (const PageGroup& group : batch) table_.note_pending(group);
  const std::optional<uint64_t> ticket = pager_.submit(epoch_, std::move(runs));
  if (!ticket) {
    for (const PageGroup& group : batch) table_.note_not_stored(group);
    return false;
  }
  batches_.emplace(*ticket, std::move(batch));
  return true;
}

// Cold pages of sparse segments are read from the primary, as when they were evicted: whatever is
// written there meanwhile is in the next epoch, and then at no location any more. Where the store
// has no room for them they come back into RAM.
void GroupPaging::clean(const std::map<int32_t, pid_t>& host_pids) {
  const bool full = state_ == StoreState::kFull;
  if (!replica_knows_ || (!full && !pager_.ready())) return;
  const std::vector<PageGroup> chosen = cleaner_.choose(table_, newest_segment(), full, now_us());
  if (chosen.empty()) return;
  if (full) {
    for (const PageGroup& group : chosen) want_back(group);
    return;
  }
  std::vector<PageGroup> batch;
  std::vector<PagerRun> runs = runs_of(chosen, host_pids, batch);
  if (runs.empty()) return;
  if (const auto ticket = pager_.submit(epoch_, std::move(runs))) {
    cleaner_.begin(*ticket, std::move(batch));
  }
}

void GroupPaging::want_back(const PageGroup& group) {
  brought_back_bytes_ += group.range.bytes();
  wanted_back_.push_back({.pid = group.pid,
                          .object = 0,
                          .kind = PageRunKind::kData,
                          .address = group.range.start,
                          .length = group.range.bytes(),
                          .data_offset = 0});
}

// The next epoch copies them as if they had been written.
void GroupPaging::bring_back(const PagingOrder& order) {
  if (order.bring_back_pages_max == 0) return;
  for (const PageGroup& group :
       table_.take_touched_again(order.bring_back_age, order.bring_back_pages_max)) {
    want_back(group);
  }
}

void GroupPaging::remove_generation(uint64_t wait_us) {
  const std::optional<uint64_t> ticket = pager_.remove_generation(store_.generation);
  for (const uint64_t ends = now_us() + wait_us; ticket && now_us() < ends;) {
    for (const PagerNews& news : pager_.poll()) {
      const auto* done = std::get_if<PagerDoneMessage>(&news);
      const auto* failed = std::get_if<PagerFailedMessage>(&news);
      if (done != nullptr && done->ticket == *ticket) return;
      if (failed != nullptr && failed->ticket == *ticket) return;
    }
    ::usleep(1000);
  }
}

void GroupPaging::take_news_of(const PagerNews& news) {
  std::visit([this](const auto& one) { take(one); }, news);
}

}  // namespace replpage
