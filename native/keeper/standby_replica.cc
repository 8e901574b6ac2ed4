#include "keeper/standby_replica.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <limits>
#include <utility>

#include "core/base/clock.h"
#include "core/base/crc32c.h"
#include "core/base/descriptor_room.h"
#include "core/base/page.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/group_check.h"
#include "core/restore/drill.h"
#include "keeper/store_source.h"

namespace replpage {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
// How long a promotion may wait until no clock of the program steps back.
constexpr int64_t kClockLagNsMax = kSecond;

// How far the program's clocks would step back if it ran now. Below zero: they leap.
int64_t clock_lag_ns(const GroupImage& image) {
  int64_t lag = std::numeric_limits<int64_t>::min();
  for (const ProcessImage& process : image.processes) {
    lag = std::max(lag, static_cast<int64_t>(process.captured_ns - now_ns()));
  }
  return lag;
}

}  // namespace

StandbyReplica::StandbyReplica(StagingReader& staging, const ClockOffsets& machine)
    : staging_(staging), machine_(machine), replica_(Replica::create()) {}

GroupImage StandbyReplica::read_image(const StagedBytes& where, uint64_t epoch) {
  GroupImage image = staging_.read<GroupImage>(where);
  if (image.epoch != epoch) throw FormatError("image is of another epoch than its message");
  check_group_image(image);
  files_.adapt(image);
  for (ProcessImage& process : image.processes) {
    process.captured_ns -= static_cast<uint64_t>(machine_.monotonic_ns);  // by our clock
  }
  return image;
}

// Clocks of two machines drift apart, and those of a time namespace are set once and for all.
void StandbyReplica::check_clock() const {
  const int64_t behind = clock_lag_ns(*image_);
  if (behind <= kClockLagNsMax) return;
  throw SysError("keep the replica's clock, which is " + std::to_string(behind / 1'000'000) +
                     " ms behind its primary's",
                 ETIME);
}

void StandbyReplica::await_clock() const {
  const int64_t behind = std::min(clock_lag_ns(*image_), kClockLagNsMax);
  if (behind <= 0) return;
  const timespec time{.tv_sec = behind / kSecond, .tv_nsec = behind % kSecond};
  ::clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

void StandbyReplica::reshape(GroupImage image) {
  replica_->shape(image);
  image_ = std::move(image);
}

std::vector<std::string> StandbyReplica::take_files(const FilesMessage& message) {
  return files_.take(message);
}

void StandbyReplica::build(const ImageMessage& message) {
  if (committed_) throw FormatError("kBuild after a commit");
  reshape(read_image(message.image, message.epoch));
}

void StandbyReplica::apply_pages(const PagesMessage& message) {
  if (committed_ || !image_) throw FormatError("kPages is for the first copy");
  write(staging_.read<PageRunList>(message.runs));
}

void StandbyReplica::stage(const PagesMessage& message) {
  if (!staged_.empty() && staged_epoch_ != message.epoch) {
    throw FormatError("pages of two epochs were staged");
  }
  staged_epoch_ = message.epoch;
  staged_.push_back(staging_.read<PageRunList>(message.runs));
}

void StandbyReplica::write_staged() {
  for (const PageRunList& list : staged_) write(list);
  staged_.clear();
}

void StandbyReplica::write(const PageRunList& list) {
  const bool cold = std::any_of(list.runs.begin(), list.runs.end(),
                                [](const PageRun& run) { return run.kind == PageRunKind::kCold; });
  if (cold && !store_) throw FormatError("cold pages, and no store is known");
  replica_->write(list.runs, staging_);
}

CommittedMessage StandbyReplica::commit(const ImageMessage& message) {
  const uint64_t started = now_us();
  if (!staged_.empty() && staged_epoch_ != message.epoch) {
    throw FormatError("commit of another epoch than was staged");
  }
  if (committed_ && message.epoch <= epoch_) throw FormatError("epochs go backwards");
  reshape(read_image(message.image, message.epoch));
  check_clock();
  write_staged();
  epoch_ = message.epoch;
  committed_ = true;
  // The holder shares our table; the files of a death must not wait for a larger one.
  make_descriptor_room(2 * image_->open_files.size());
  return {.epoch = epoch_,
          .apply_us = now_us() - started,
          .resident_bytes = replica_->resident_bytes(),
          .cold_bytes = replica_->cold_bytes()};
}

void StandbyReplica::use_store(const StoreMessage& message, std::vector<UniqueFd> descriptors) {
  if (descriptors.size() != 1) throw FormatError("kStore comes with one directory");
  store_ = message;
  store_directory_ = std::move(descriptors[0]);
}

std::unique_ptr<PageSource> StandbyReplica::open_store() {
  if (!store_) return nullptr;
  return std::make_unique<StoreSource>(std::move(store_directory_), *store_);
}

void StandbyReplica::get_ready() {
  if (!committed_) throw FormatError("kDying before the first commit");
  replica_->get_ready(*image_);
}

void StandbyReplica::keep_handed_of(uint64_t epoch) {
  if (epoch == handed_epoch_) return;
  handed_.clear();
  sources_.clear();
  handed_epoch_ = epoch;
}

void StandbyReplica::take_descriptors(const DescriptorsMessage& message,
                                      std::vector<UniqueFd> descriptors) {
  if (descriptors.size() != message.positions.size() + message.memory_pids.size()) {
    throw FormatError("kDescriptors has another number of descriptors than it says");
  }
  keep_handed_of(message.epoch);
  size_t at = 0;
  for (const uint32_t position : message.positions) {
    handed_.emplace_back(position, std::move(descriptors[at++]));
  }
  for (const int32_t pid : message.memory_pids) {
    sources_.push_back({.pid = pid, .memory = std::move(descriptors[at++])});
  }
}

void StandbyReplica::take_last_state(const ImageMessage& message) {
  if (!committed_ || message.epoch <= epoch_) throw FormatError("kLastState of an old epoch");
  last_state_ = read_image(message.image, message.epoch);
}

void StandbyReplica::bring_to(const PromoteMessage& message) {
  if (!committed_) throw FormatError("kPromote before the first commit");
  // Those are of an epoch that never came to its end.
  staged_.clear();
  if (message.epoch == epoch_) return;
  if (!last_state_ || last_state_->epoch != message.epoch) {
    throw FormatError("promotion of an epoch whose state is not known");
  }
  reshape(std::move(*last_state_));
  last_state_.reset();
  if (message.runs.length != 0) {
    write(staging_.read<PageRunList>(message.runs));
  }
  epoch_ = message.epoch;
}

HashesMessage StandbyReplica::hash(const HashMessage& message) const {
  if (!committed_) throw FormatError("kHash before the first commit");
  if (message.pages > kHashPagesMax) throw FormatError("kHash of too many pages");
  const UniqueFd memory = open_path("/proc/" + std::to_string(message.pid) + "/mem", O_RDONLY);
  Bytes pages(message.pages * kPageSize);
  HashesMessage answer;
  // Cold pages are not to be read from outside: see ColdGuard.
  const ssize_t got =
      ::pread(memory.get(), pages.data(), pages.size(), static_cast<off_t>(message.start));
  if (got != static_cast<ssize_t>(pages.size())) return answer;
  for (size_t page = 0; page < message.pages; ++page) {
    answer.hashes.push_back(crc32c(std::span(pages).subspan(page * kPageSize, kPageSize)));
  }
  return answer;
}

DrilledMessage StandbyReplica::drill(const DrillMessage& message) {
  try {
    return drill_or_throw(message);
  } catch (const std::exception& error) {
    return {.problem = error.what()};
  }
}

DrilledMessage StandbyReplica::drill_or_throw(const DrillMessage& message) {
  if (!committed_) throw FormatError("kDrill before the first commit");
  std::string why = why_no_drill(*image_);
  if (!why.empty()) return {.problem = std::move(why)};
  const uint64_t started = now_us();
  await_clock();
  image_ = without_outside(std::move(*image_));
  PromoteInput input;
  input.image = &*image_;
  input.keep_files = true;
  input.outside_stream = open_path("/dev/null", O_RDWR);
  input.drill_us = std::max<uint64_t>(message.run_us, 1);
  const PromotedReplica tried = replica_->promote(std::move(input), nullptr);
  return {.problem = tried.drill.problem,
          .promote_us = tried.ran_us - started,
          .threads = tried.drill.threads,
          .calls = tried.drill.calls};
}

PromotionOrder StandbyReplica::prepare(const PromoteMessage& message) {
  bring_to(message);
  await_clock();
  PromotionOrder order;
  order.input.image = &*image_;
  order.input.exact = message.exact;
  order.input.keep_files = message.keep_files;
  order.input.handed.resize(image_->open_files.size());
  keep_handed_of(message.epoch);
  for (auto& [position, descriptor] : handed_) {
    if (position >= order.input.handed.size()) throw FormatError("descriptor of no open file");
    order.input.handed[position] = std::move(descriptor);
  }
  handed_.clear();
  if (message.lazy.length != 0) {
    order.input.lazy = staging_.read<LazyRangeList>(message.lazy).ranges;
  }
  order.sources = std::move(sources_);
  return order;
}

}  // namespace replpage
