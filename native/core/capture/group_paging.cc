#include "core/capture/group_paging.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <variant>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// A store that has not answered for so long counts as hung, and its pager is killed after the
// second time; it may be a dead mount that only a new process gets rid of.
constexpr uint64_t kHungUs = 5'000'000;
constexpr uint64_t kKillUs = 60'000'000;
// What was touched in so many samples is shown as hot.
constexpr uint8_t kHotSamples = 2;
constexpr uint64_t kTryAgainUs = 10'000'000;
// Generations before this one that may have left something behind.
constexpr uint64_t kPast = 8;

PagerOptions pager_options(const GroupOptions& options, std::shared_ptr<const StoreKey> key) {
  const PagingOptions& paging = *options.paging;
  PagerOptions result;
  result.executable = paging.pager_path;
  result.store = paging.store;
  result.group = options.name;
  result.group_id = paging.group_id;
  result.generation = options.generation;
  result.key = std::move(key);
  result.bytes_max = paging.store_bytes_max;
  result.allow_memory_file_systems = paging.allow_memory_file_systems;
  if (paging.as_owner) result.rights = CallerRights{options.uid, options.gid, options.groups};
  return result;
}

std::shared_ptr<const StoreKey> load_key(const std::string& path) {
  if (path.empty()) return nullptr;
  return std::make_shared<const StoreKey>(StoreKey::load_or_make(path));
}

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
      key_(load_key(options_.key_path)),
      store_(store_message(options, key_.get())),
      pager_(pager_options(options, key_)),
      pace_(options_.cold_after_us) {}

void GroupPaging::wait_open(uint64_t wait_us) {
  for (const uint64_t ends = now_us() + wait_us; now_us() < ends; ::usleep(1000)) {
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

void GroupPaging::note_copied(const GroupImage& image, std::span<const PageRun> runs) {
  for (const ProcessImage& process : image.processes) table_.fit(process.pid, process.mappings);
  table_.note_runs(runs);
}

void GroupPaging::add_cold_runs(const GroupImage& image, PageRunList& list) {
  forget_gone(image);
  note_copied(image, list.runs);
  epoch_ = image.epoch;
  const size_t before = list.runs.size();
  if (replica_knows_) {
    for (const PageGroup& group : std::exchange(stored_, {})) add_cold_run(group, list);
  }
  table_.note_runs(std::span(list.runs).subspan(before));
  dead_.clear();
  if (segments_.empty()) return;
  const uint32_t newest = *segments_.rbegin();
  for (const uint32_t segment : segments_) {
    if (segment != newest && !table_.live_pages().contains(segment)) dead_.push_back(segment);
  }
}

// What was written since it was stored is at that location no more.
void GroupPaging::add_cold_run(const PageGroup& group, PageRunList& list) {
  for (uint64_t page = group.range.start; page < group.range.end; page += kPageSize) {
    const uint64_t location = group.location + (page - group.range.start);
    const PageGroup one{group.pid, {page, page + kPageSize}, true, location};
    if (table_.note_moved(one, location) == 0) continue;
    evicted_bytes_ += kPageSize;
    if (!list.runs.empty()) {
      PageRun& last = list.runs.back();
      if (last.kind == PageRunKind::kCold && last.pid == group.pid &&
          last.address + last.length == page && last.data_offset + last.length == location) {
        last.length += kPageSize;
        continue;
      }
    }
    list.runs.push_back({.pid = group.pid,
                         .object = 0,
                         .kind = PageRunKind::kCold,
                         .address = page,
                         .length = kPageSize,
                         .data_offset = location});
  }
}

void GroupPaging::note_committed() {
  if (dead_.empty() || !pager_.drop_segments(dead_)) return;
  for (const uint32_t segment : dead_) segments_.erase(segment);
  dead_.clear();
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
  sample_when_due(image, host_pids);
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
  state_ = StoreState::kOk;
  trouble_.clear();
  pager_cpu_us_ += written.cpu_us;
  for (const PagerWrittenRun& run : written.runs) {
    segments_.insert(segment_of(run.location));
    written_bytes_ += run.pages * kPageSize;
    const PageGroup group{
        run.pid, {run.address, run.address + run.pages * kPageSize}, true, run.location};
    const std::vector<PageGroup> kept = table_.note_stored(group);
    stored_.insert(stored_.end(), kept.begin(), kept.end());
  }
  if (written.unreadable_pages != 0) {
    // Another address space by now (execve): its descriptor is made anew.
    for (const PageGroup& group : batches_[written.ticket]) {
      if (sources_.erase(group.pid) != 0) pager_.forget_source(static_cast<uint32_t>(group.pid));
    }
  }
  std::map<int32_t, std::vector<PageRange>> durable;
  for (const PagerWrittenRun& run : written.runs) {
    durable[run.pid].push_back({run.address, run.address + run.pages * kPageSize});
  }
  give_back(written.ticket, durable);
}

void GroupPaging::take(const PagerDoneMessage&) {}

void GroupPaging::take(const PagerFailedMessage& failed) {
  state_ = failed.kind == StoreFailure::kFull ? StoreState::kFull : StoreState::kFailing;
  trouble_ = failed.reason;
  trouble_us_ = now_us();
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
  table_.grow_older(process.pid);
  try {
    if (!sampler.tracker || sampler.host_pid != host_pid) {
      sampler = {host_pid, make_access_tracker(host_pid, options_.tracker)};
    }
    tracker_name_ = name_of(sampler.tracker->kind());
    return sampler.tracker->sample(process.mappings, [&](std::span<const PageRange> touched) {
      table_.note_touched(process.pid, touched);
    });
  } catch (const SysError&) {
    // It is gone, or executes something else: the next sample begins anew.
    sampler.tracker.reset();
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
    for (const PageGroup& group : groups) {
      if (group.stored || batch.size() == kPagerRunsMax) continue;
      batch.push_back(group);
      pages_left -= group.range.pages();
    }
    if (batch.empty() || !submit(batch, host_pids)) return;
  }
}

bool GroupPaging::submit(std::span<const PageGroup> groups,
                         const std::map<int32_t, pid_t>& host_pids) {
  std::vector<PagerRun> runs;
  std::vector<PageGroup> batch;
  for (const PageGroup& group : groups) {
    if (!know_source(group.pid, host_pids)) continue;
    runs.push_back({.address = group.range.start,
                    .offset = group.range.start,
                    .pid = group.pid,
                    .source = static_cast<uint32_t>(group.pid),
                    .pages = static_cast<uint32_t>(group.range.pages()),
                    .reserved = 0});
    batch.push_back(group);
  }
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

// The next epoch copies them as if they had been written.
void GroupPaging::bring_back(const PagingOrder& order) {
  if (order.bring_back_pages_max == 0) return;
  for (const PageGroup& group :
       table_.take_touched_again(order.bring_back_age, order.bring_back_pages_max)) {
    brought_back_bytes_ += group.range.bytes();
    wanted_back_.push_back({.pid = group.pid,
                            .object = 0,
                            .kind = PageRunKind::kData,
                            .address = group.range.start,
                            .length = group.range.bytes(),
                            .data_offset = 0});
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

std::vector<InspectedMapping> GroupPaging::inspect(const GroupImage& image, size_t cells) const {
  std::vector<InspectedMapping> mappings;
  for (const ProcessImage& process : image.processes) {
    for (const MappingImage& mapping : process.mappings) {
      if (mapping.kind != MappingKind::kAnonymous) continue;
      mappings.push_back(
          {.pid = process.pid,
           .range = mapping.range(),
           .is_stack = (mapping.flags & kGrowsDown) != 0,
           .name = mapping.anon_name,
           .cells = table_.describe(process.pid, mapping.range(), kHotSamples, cells)});
    }
  }
  return mappings;
}

PagingReport GroupPaging::report() const {
  const PageSums sums = table_.sums();
  const AgeHistogram ages = table_.resident_ages();
  const AgeHistogram again = table_.touched_again_ages();
  return {.tracker = tracker_name_,
          .samples = samples_,
          .sample_us = sample_us_,
          .period_us = pace_.period_us(),
          .sample_share = pace_.share(),
          .resident_bytes = sums.resident_bytes,
          .cold_bytes = sums.cold_bytes,
          .absent_bytes = sums.absent_bytes,
          .pending_bytes = sums.pending_bytes,
          .candidate_bytes = sums.candidate_bytes,
          .ages = {ages.begin(), ages.end()},
          .touched_again = {again.begin(), again.end()},
          .table_bytes = table_.memory_bytes(),
          .store = state_,
          .trouble = trouble_,
          .store_bytes = pager_.usage().bytes,
          .store_segments = pager_.usage().segments,
          .written_bytes = written_bytes_,
          .evicted_bytes = evicted_bytes_,
          .brought_back_bytes = brought_back_bytes_,
          .pager_cpu_us = pager_cpu_us_,
          .pager_pid = pager_.pid()};
}

}  // namespace replpage
