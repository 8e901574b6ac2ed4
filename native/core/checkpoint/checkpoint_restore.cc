#include "core/checkpoint/checkpoint_restore.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/link/keeper_link.h"
#include "core/link/keeper_process.h"
#include "core/staging/page_stream.h"
#include "core/staging/staging.h"

namespace replpage {
namespace {

constexpr std::chrono::milliseconds kLook{100};

// What a promoted process may find missing when it touches it.
bool may_wait(const GroupImage& image, const PageRun& run) {
  if (run.pid < 0) return false;
  for (const ProcessImage& process : image.processes) {
    if (process.pid != run.pid) continue;
    const auto found = std::upper_bound(
        process.mappings.begin(), process.mappings.end(), run.address,
        [](uint64_t address, const MappingImage& mapping) { return address < mapping.end; });
    return found != process.mappings.end() && found->start <= run.address &&
           run.address + run.length <= found->end && found->kind == MappingKind::kAnonymous &&
           (found->flags & (kLocked | kGrowsDown)) == 0;
  }
  return false;
}

class Restore {
 public:
  Restore(const RestoreOptions& options, const std::stop_token& stop)
      : options_(options),
        stop_(stop),
        reader_(options.place, stop),
        staging_({.memory_bytes = options.staging_bytes_max,
                  .spill_bytes_max = options.spill_bytes_max,
                  .spill_directory = options.spill_directory}) {}

  PromotionReport run() {
    const uint64_t began = now_us();
    check_kernel();
    state_ = reader_.read_state();
    adapt_image();
    split_pages();
    start_keeper();
    const std::stop_callback stop_waiting(stop_, [this] { keeper_->stop_waiting(); });
    build();
    write_pages();
    commit();
    const PromotedMessage promoted = promote();
    return {.epoch = promoted.epoch,
            .pid = promoted.pid,
            .host_pid = promoted.host_pid,
            .exact = false,
            .decision_to_run_us = promoted.ran_us - began,
            .death_to_run_us = 0,
            .lazy_pages = 0,
            .why_not_exact = {}};
  }

 private:
  void check_kernel() const {
    const std::string& then = reader_.manifest().kernel;
    if (then == kernel_name()) return;
    throw StoreError(StoreFailure::kUnusable, "the checkpoint was taken on another kernel (" +
                                                  then + "), whose vdso its processes have mapped");
  }

  // Host pids are of processes that are gone.
  void adapt_image() {
    state_.image.generation = options_.generation;
    for (ProcessImage& process : state_.image.processes) {
      for (ThreadImage& thread : process.threads) thread.host_tid = 0;
    }
  }

  void split_pages() {
    for (PageRun& run : state_.pages.runs) {
      if (run.kind == PageRunKind::kCold && may_wait(state_.image, run)) {
        cold_.runs.push_back(run);
      } else {
        eager_.push_back(run);
      }
    }
    state_.pages.runs.clear();
  }

  // A machine that was started after the checkpoint was taken counts from anew; the program goes
  // on.
  [[nodiscard]] ClockOffsets clocks_ahead() const {
    const uint64_t now = now_ns();
    uint64_t captured = now;
    for (const ProcessImage& process : state_.image.processes) {
      captured = std::max(captured, process.captured_ns);
    }
    const auto ahead = static_cast<int64_t>(captured - now);
    return {.monotonic_ns = ahead, .boottime_ns = ahead};
  }

  void start_keeper() {
    ReplicaOptions options = options_;
    options.clocks.machine = clocks_ahead();
    KeeperProcess keeper = spawn_keeper_of(options, 0, staging_);
    const KeeperLink::News news{
        .promoted = [this](const PromotedMessage& message) { promoted_.set_value(message); },
        .drained = [](const DrainedMessage&) {},
        .lost =
            [this](const std::string& reason) {
              try {
                promoted_.set_exception(std::make_exception_ptr(KeeperLost(reason)));
              } catch (const std::future_error&) {  // it runs already
              }
            }};
    keeper_ = std::make_unique<KeeperLink>(std::move(keeper.channel), std::move(keeper.pidfd), news,
                                           options_.keeper_answer_ms);
  }

  void build() {
    const uint64_t epoch = state_.image.epoch;
    keeper_->send(MessageType::kBuild, ImageMessage{epoch, staging_.put(state_.image)});
    keeper_->wait_reply(MessageType::kBuilt);
    staging_.reset();
  }

  void write_pages() {
    PageStream stream(
        staging_, {.send_pages =
                       [this](StagedBytes runs) {
                         keeper_->send(MessageType::kPages, PagesMessage{state_.image.epoch, runs});
                       },
                   .wait_pages_done = [this] { keeper_->wait_reply(MessageType::kPagesDone); }});
    std::vector<PageRun> batch;
    uint64_t bytes = 0;
    const auto flush = [&] {
      if (!batch.empty()) copy(batch, bytes, stream);
      batch.clear();
      bytes = 0;
    };
    for (const PageRun& run : eager_) {
      if (run.kind != PageRunKind::kCold) {
        stream.add(named(run));
        continue;
      }
      if (bytes + run.length > CheckpointReader::kFetchBytesMax) flush();
      batch.push_back(run);
      bytes += run.length;
    }
    flush();
    stream.finish();
  }

  void copy(const std::vector<PageRun>& batch, uint64_t bytes, PageStream& stream) {
    const std::span<const uint8_t> content = reader_.fetch(batch);
    const std::span<uint8_t> room = stream.reserve(bytes);
    std::copy(content.begin(), content.end(), room.begin());
    uint64_t offset = stream.keep(bytes);
    for (const PageRun& run : batch) {
      PageRun data = named(run);
      data.kind = PageRunKind::kData;
      data.data_offset = offset;
      offset += run.length;
      stream.add(data);
    }
  }

  // As the keeper knows it: objects have a number of their own there.
  static PageRun named(PageRun run) {
    if (run.pid < 0) {
      run.object = object_of_pid(run.pid);
      run.pid = 0;
    }
    return run;
  }

  void commit() {
    const uint64_t epoch = state_.image.epoch;
    const CheckpointManifest& manifest = reader_.manifest();
    StoreMessage store{.key = {reader_.key().bytes().begin(), reader_.key().bytes().end()},
                       .path = options_.place.store,
                       .name = options_.place.name,
                       .group_id = manifest.group_id,
                       .generation = manifest.generation};
    const int directory = reader_.directory();
    keeper_->send(MessageType::kStore, std::move(store), {&directory, 1});
    keeper_->send(MessageType::kStage, PagesMessage{epoch, staging_.put(cold_)});
    keeper_->send(MessageType::kCommit, ImageMessage{epoch, staging_.put(state_.image)});
    (void)keeper_->wait_reply_as<CommittedMessage>(MessageType::kCommitted);
  }

  PromotedMessage promote() {
    const PromoteMessage order{.epoch = state_.image.epoch,
                               .exact = false,
                               .keep_files = options_.keep_files,
                               .runs = {},
                               .lazy = {}};
    keeper_->send(MessageType::kPromote, order);
    std::future<PromotedMessage> promoted = promoted_.get_future();
    // The link gives up a keeper that does not answer.
    while (promoted.wait_for(kLook) != std::future_status::ready) {
      if (stop_.stop_requested()) throw KeeperLost("nobody waits for it any more");
    }
    return promoted.get();
  }

  const RestoreOptions& options_;
  const std::stop_token stop_;
  CheckpointReader reader_;
  StagingArea staging_;
  CheckpointState state_;
  PageRunList cold_;
  std::vector<PageRun> eager_;
  std::promise<PromotedMessage> promoted_;
  std::unique_ptr<KeeperLink> keeper_;  // last: its thread tells of what is above
};

}  // namespace

PromotionReport restore_checkpoint(const RestoreOptions& options, const std::stop_token& stop) {
  return Restore(options, stop).run();
}

}  // namespace replpage
