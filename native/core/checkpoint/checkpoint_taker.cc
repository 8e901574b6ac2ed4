#include "core/checkpoint/checkpoint_taker.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <variant>

#include "core/base/caller_rights.h"
#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/group/group_store.h"
#include "core/memory/pagemap_entries.h"
#include "core/store/checkpoint_manifest.h"
#include "core/store/store_location.h"

namespace replpage {
namespace {

// A store that has not answered for so long fails the checkpoint; its pager is killed.
constexpr uint64_t kAnswerUs = 60'000'000;
constexpr useconds_t kLookAgainUs = 500;
// Numbers of sources beside those of paging, which are pids.
constexpr uint32_t kFirstSource = 0x4000'0000;
constexpr size_t kEntriesAtOnce = 64 * 1024;

UniqueFd in_memory(std::span<const uint8_t> bytes) {
  UniqueFd file(::memfd_create("replpage checkpoint", MFD_CLOEXEC));
  if (!file.valid()) throw SysError::from_errno("memfd_create");
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t put =
        ::pwrite(file.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw SysError::from_errno("write the state of a checkpoint");
    done += static_cast<size_t>(put);
  }
  return file;
}

// Pages of the process itself, not of files.
PageRanges own_pages(int pagemap, PageRange range, const std::function<void()>& check) {
  PageRanges found;
  std::vector<uint64_t> entries(kEntriesAtOnce);
  for (uint64_t at = range.start; at < range.end;) {
    check();
    const size_t wanted = std::min<uint64_t>(kEntriesAtOnce, (range.end - at) / kPageSize);
    const ssize_t got = ::pread(pagemap, entries.data(), wanted * sizeof(uint64_t),
                                static_cast<off_t>(at / kPageSize * sizeof(uint64_t)));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw SysError("read the page map of the replica", got == 0 ? ESRCH : errno);
    const size_t count = static_cast<size_t>(got) / sizeof(uint64_t);
    append_matching(std::span(entries).first(count), at, {.excluded = kEntryFile}, found);
    at += count * kPageSize;
  }
  return found;
}

uint64_t ticket_of(const PagerNews& news) {
  if (const auto* written = std::get_if<PagerWrittenMessage>(&news)) return written->ticket;
  if (const auto* done = std::get_if<PagerDoneMessage>(&news)) return done->ticket;
  if (const auto* failed = std::get_if<PagerFailedMessage>(&news)) return failed->ticket;
  return 0;
}

}  // namespace

CheckpointReport CheckpointTaker::take() {
  try {
    return take_or_throw();
  } catch (...) {
    leave_behind();
    throw;
  }
}

// What was written for nothing goes with one of the next epochs.
void CheckpointTaker::leave_behind() {
  if (context_.paging) {
    forget_sources();
    context_.paging->note_segments(new_segments_);
  } else if (own_pager_) {
    context_.next_segment = std::max(context_.next_segment, own_pager_->usage().next_segment);
  }
}

void CheckpointTaker::forget_sources() {
  for (const uint32_t source : std::exchange(sources_, {})) pager().forget_source(source);
}

void CheckpointTaker::check_wanted() const {
  if (context_.cancelled) throw CheckpointCut("the group died or was let go meanwhile");
  if (context_.hurried) throw CheckpointCut("its replica was to be promoted meanwhile");
}

CheckpointReport CheckpointTaker::take_or_throw() {
  check_wanted();
  take_image();
  (void)pager();
  add_cold_pages();
  look();
  write_wanted();
  check_alive();
  const PagerDoneMessage done = seal();
  forget_sources();
  if (context_.paging) {
    // Where none of the group's pages is in them, they go with one of the next epochs.
    context_.paging->note_segments(new_segments_);
  } else {
    leave_generation();
  }
  return {.id = done.id,
          .epoch = state_.image.epoch,
          .written_bytes = written_pages_ * kPageSize,
          .cold_bytes = cold_pages_ * kPageSize,
          .stored_bytes = done.bytes};
}

// The checkpoint has names of its own for what it needs.
void CheckpointTaker::leave_generation() {
  context_.next_segment = pager().usage().next_segment;
  const uint64_t generation = context_.options.generation;
  try {
    (void)ask_and_wait<PagerDoneMessage>(
        [&](PagerLink& link) { return link.remove_generation(generation); });
  } catch (const StoreError&) {  // the next one tries again
  }
}

PagerLink& CheckpointTaker::pager() {
  if (context_.paging) return context_.paging->pager();
  if (own_pager_) return *own_pager_;
  GroupOptions options = context_.options;
  options.paging = request_.store;
  PagerOptions asked = pager_options(options, load_store_key(request_.store.key_path));
  asked.first_segment = context_.next_segment;
  asked.writer = context_.store_writer;
  own_pager_ = std::make_unique<PagerLink>(std::move(asked));
  return *own_pager_;
}

// With what the kernel keeps of pipes and sockets: of the last epoch, as the replica has it.
void CheckpointTaker::take_image() {
  const pid_t host_pid = context_.options.pid;
  tracer_.call([this](TraceTree&) {
    if (context_.dying || context_.phase != GroupPhase::kProtected) {
      throw CheckpointCut("the group is dying");
    }
    state_.image = context_.last_image;
  });
  refuse_unrestorable(state_.image, host_pid);
}

void CheckpointTaker::add_cold_pages() {
  if (!context_.paging) return;
  if (!context_.paging->replica_has_all()) throw CheckpointCut("the last epoch was not sent");
  for (const PageGroup& group : context_.paging->cold_pages()) {
    cold_[group.pid].push_back(group.range);
    segments_.insert(segment_of(group.location));
    cold_pages_ += group.range.pages();
    state_.pages.runs.push_back({.pid = group.pid,
                                 .object = 0,
                                 .kind = PageRunKind::kCold,
                                 .address = group.range.start,
                                 .length = group.range.bytes(),
                                 .data_offset = group.location});
  }
  for (auto& [pid, ranges] : cold_) ranges = normal_ranges(std::move(ranges));
}

void CheckpointTaker::look() {
  const auto keeper = context_.replicas->here();
  if (!keeper) throw CheckpointCut("no replica is kept here");
  keeper->send_empty(MessageType::kLook);
  for (bool last = false; !last;) {
    ReceivedMessage answer = keeper->wait_message(MessageType::kView);
    const auto view = decode<ViewMessage>(answer.body);
    last = view.last;
    if (answer.descriptors.size() != 2 * view.pids.size() + view.objects.size()) {
      throw FormatError("kView has another number of descriptors than it says");
    }
    size_t at = 0;
    for (const int32_t pid : view.pids) {
      Source source{.pid = pid,
                    .memory = std::move(answer.descriptors[at]),
                    .pagemap = std::move(answer.descriptors[at + 1])};
      at += 2;
      const uint32_t number = kFirstSource + next_source_++;
      for (const ProcessImage& process : state_.image.processes) {
        if (process.pid == pid) want_process(process, source, number);
      }
      pager().set_source(number, std::move(source.memory));
      sources_.insert(number);
    }
    for (const uint32_t id : view.objects) {
      const uint32_t number = kFirstSource + next_source_++;
      for (const SharedObjectImage& object : state_.image.shared_objects) {
        if (object.id == id) want_object(object, answer.descriptors[at].get(), number);
      }
      pager().set_source(number, std::move(answer.descriptors[at++]));
      sources_.insert(number);
    }
  }
}

void CheckpointTaker::want_process(const ProcessImage& process, const Source& source,
                                   uint32_t number) {
  for (const MappingImage& mapping : process.mappings) {
    const bool copied =
        mapping.kind == MappingKind::kFilePrivate || mapping.kind == MappingKind::kMemfdPrivate;
    if (!copied && mapping.kind != MappingKind::kAnonymous) continue;
    const PageRanges pages =
        own_pages(source.pagemap.get(), mapping.range(), [this] { check_wanted(); });
    for (const PageRange& range : subtract_ranges(pages, cold_[process.pid])) {
      wanted_.push_back(
          {.pid = process.pid, .source = number, .range = range, .zeros_count = copied});
    }
  }
}

// Data alone; the rest of it is a hole.
void CheckpointTaker::want_object(const SharedObjectImage& object, int memfd, uint32_t number) {
  const auto size = static_cast<off_t>(page_ceil(object.size));
  for (off_t at = 0; at < size;) {
    check_wanted();
    const off_t data = ::lseek(memfd, at, SEEK_DATA);
    if (data < 0 || data >= size) return;
    const off_t hole = ::lseek(memfd, data, SEEK_HOLE);
    at = hole < 0 ? size : hole;
    wanted_.push_back(
        {.pid = pid_of_object(object.id),
         .source = number,
         .range = {page_floor(static_cast<uint64_t>(data)),
                   std::min(page_ceil(static_cast<uint64_t>(at)), static_cast<uint64_t>(size))}});
  }
}

void CheckpointTaker::write_wanted() {
  std::vector<Wanted> batch;
  uint64_t pages = 0;
  const auto flush = [&] {
    if (!batch.empty()) write_batch(batch);
    batch.clear();
    pages = 0;
  };
  for (const Wanted& wanted : wanted_) {
    for (PageRange rest = wanted.range; rest.start < rest.end;) {
      Wanted part = wanted;
      part.range = {rest.start,
                    std::min(rest.end, rest.start + (kPagerPagesMax - pages) * kPageSize)};
      rest.start = part.range.end;
      pages += part.range.pages();
      batch.push_back(part);
      if (pages == kPagerPagesMax || batch.size() == kPagerRunsMax) flush();
    }
  }
  flush();
}

void CheckpointTaker::write_batch(const std::vector<Wanted>& batch) {
  const auto written = ask_and_wait<PagerWrittenMessage>([&](PagerLink& link) {
    std::vector<PagerRun> runs;
    for (const Wanted& wanted : batch) {
      runs.push_back({.address = wanted.range.start,
                      .offset = wanted.range.start,
                      .pid = wanted.pid,
                      .source = wanted.source,
                      .pages = static_cast<uint32_t>(wanted.range.pages()),
                      .reserved = 0});
    }
    return link.submit(state_.image.epoch, std::move(runs));
  });
  if (written.unreadable_pages != 0) throw SysError("read the replica's memory", EIO);
  std::map<int32_t, PageRanges> stored;
  for (const PagerWrittenRun& run : written.runs) {
    const uint64_t length = run.pages * kPageSize;
    stored[run.pid].push_back({run.address, run.address + length});
    const auto segment = segment_of(run.location);
    segments_.insert(segment);
    new_segments_.insert(segment);
    written_pages_ += run.pages;
    state_.pages.runs.push_back({.pid = run.pid,
                                 .object = 0,
                                 .kind = PageRunKind::kCold,
                                 .address = run.address,
                                 .length = length,
                                 .data_offset = run.location});
  }
  for (auto& [pid, ranges] : stored) ranges = normal_ranges(std::move(ranges));
  for (const Wanted& wanted : batch) {
    if (!wanted.zeros_count) continue;
    for (const PageRange& zero : subtract_ranges({&wanted.range, 1}, stored[wanted.pid])) {
      state_.pages.runs.push_back({.pid = wanted.pid,
                                   .object = 0,
                                   .kind = PageRunKind::kZero,
                                   .address = zero.start,
                                   .length = zero.bytes(),
                                   .data_offset = 0});
    }
  }
}

// A replica that is being promoted is no epoch any more.
void CheckpointTaker::check_alive() {
  tracer_.call([this](TraceTree&) {
    const bool same = context_.last_image.epoch == state_.image.epoch;
    if (context_.dying || context_.phase != GroupPhase::kProtected || !same) {
      throw CheckpointCut("the group is dying");
    }
  });
}

PagerDoneMessage CheckpointTaker::seal() {
  const GroupOptions& options = context_.options;
  const PagingOptions& store = context_.paging ? *options.paging : request_.store;
  const Bytes state = encode(state_);
  CheckpointManifest manifest{
      .name = options.name,
      .group_id = store.group_id,
      .generation = options.generation,
      .epoch = state_.image.epoch,
      .uid = options.uid,
      .gid = options.gid,
      .options = request_.options,
      .kernel = kernel_name(),
      .boot_id = read_proc("/proc/sys/kernel/random/boot_id").value_or("").substr(0, 36),
      .host_pid = options.pid,
      .start_time = start_time_of(options.pid).value_or(0),
      .cold_pages = cold_pages_ + written_pages_,
      .state_bytes = state.size(),
      .state_crc = crc32c(state),
      .state = {},
      .segments = {segments_.begin(), segments_.end()}};
  const uint32_t number = kFirstSource + next_source_++;
  pager().set_source(number, in_memory(state));
  sources_.insert(number);
  PagerDoneMessage done = ask_and_wait<PagerDoneMessage>(
      [&](PagerLink& link) { return link.checkpoint(encode(manifest), number, request_.keep); });
  // The state is behind the pages, perhaps in a segment of its own.
  for (uint32_t next = new_segments_.empty() ? 1 : *new_segments_.rbegin() + 1;
       next < done.usage.next_segment; ++next) {
    new_segments_.insert(next);
  }
  return done;
}

// Asks until the pager takes it, then waits for its answer; news of paging's own go there.
template <class Answer, class Ask>
Answer CheckpointTaker::ask_and_wait(Ask ask) {
  PagerLink& link = pager();
  std::optional<uint64_t> ticket;
  for (const uint64_t ends = now_us() + kAnswerUs; now_us() < ends; ::usleep(kLookAgainUs)) {
    try {
      check_wanted();
    } catch (const CheckpointCut&) {
      if (ticket && context_.paging) context_.paging->forget_ticket(*ticket);
      throw;
    }
    std::optional<Answer> answer;
    std::optional<StoreError> failure;
    for (const PagerNews& news : link.poll()) {
      const uint64_t of = ticket_of(news);
      const bool ours = (ticket && of == *ticket) || (own_pager_ && of == 0);
      if (const auto* failed = std::get_if<PagerFailedMessage>(&news); failed != nullptr && ours) {
        failure.emplace(failed->kind, failed->reason, failed->error);
      } else if (const auto* one = std::get_if<Answer>(&news); one != nullptr && ours) {
        answer = *one;
      } else if (context_.paging) {
        context_.paging->take_news_of(news);
      }
    }
    if (failure) throw StoreError(*failure);
    if (answer) return std::move(*answer);
    if (!ticket) ticket = ask(link);
  }
  link.kill_pager("the page store does not answer");
  throw StoreError(StoreFailure::kIo, "page store: it does not answer");
}

}  // namespace replpage
