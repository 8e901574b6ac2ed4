// The death of a group's root, and the planned promotion, which is a death by order.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <future>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/capture/group_session.h"
#include "core/image/kernel_reader.h"

namespace replpage {
namespace {

// How long threads of a dying group may take to reach their stops: one in a disk wait is late.
constexpr uint64_t kDeathDeadlineUs = 2'000'000;
// Pages copied before the replica runs (about 4 ms); denser mappings are read lazily.
constexpr uint64_t kLastPagesCopiedMax = 1500;

DeathCause cause_of(int wait_status) {
  if (!WIFSIGNALED(wait_status)) return DeathCause::kExit;
  switch (WTERMSIG(wait_status)) {
    case SIGKILL:
      return DeathCause::kSigkill;
    case SIGSEGV:
    case SIGABRT:
    case SIGBUS:
    case SIGILL:
    case SIGFPE:
    case SIGSYS:
    case SIGTRAP:
      return DeathCause::kCrash;
    default:
      return DeathCause::kSignal;
  }
}

uint64_t robust_list_of(pid_t tid) {
  uint64_t head = 0;
  size_t size = 0;
  return ::syscall(SYS_get_robust_list, tid, &head, &size) == 0 ? head : 0;
}

std::string describe_end(int wait_status) {
  return WIFSIGNALED(wait_status)
             ? "ended by signal " + std::to_string(WTERMSIG(wait_status))
             : "exited with status " + std::to_string(WEXITSTATUS(wait_status));
}

// Whether SIGKILL is on its way to a process, by its pending masks (proc(5)).
bool kill_is_pending(pid_t pid) {
  const auto status = read_proc("/proc/" + std::to_string(pid) + "/status");
  if (!status) return true;
  constexpr uint64_t kKillBit = 1ull << (SIGKILL - 1);
  for (const char* key : {"SigPnd", "ShdPnd"}) {
    const auto mask = field_of(*status, key);
    if (mask && (std::stoull(std::string(*mask), nullptr, 16) & kKillBit) != 0) return true;
  }
  return false;
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

}  // namespace

void GroupSession::on_new_process(const TracedProcess& /*child*/) {}
void GroupSession::on_new_thread(const TracedThread& /*thread*/) {}

void GroupSession::on_exec(const TracedProcess& process) {
  if (capture_) capture_->note_execution(process.pid);
}

ExitDecision GroupSession::on_exit_stop(const TracedProcess& process, const TracedThread& thread) {
  if (death_) {
    // Until the replica has everything its pages are read from here, whoever kills what is left.
    return phase_ == Phase::kDone ? ExitDecision::kRelease : ExitDecision::kHold;
  }
  if (phase_ != Phase::kProtected) return ExitDecision::kRelease;
  const DeathCause cause = cause_of(thread.exit_code);
  if (process.pid != tree_->root()) {
    // A child that was killed alone just dies, as its parent expects; one that was killed along
    // with the root (kill -9 -PGID) is part of the root's death.
    if (cause != DeathCause::kSigkill || !kill_is_pending(tree_->root())) {
      if (process.threads.size() == 1) capture_->note_exit(process.pid);
      return ExitDecision::kRelease;
    }
  } else if (cause == DeathCause::kExit && process.threads.size() > 1) {
    return ExitDecision::kRelease;
  } else if ((cause == DeathCause::kExit || cause == DeathCause::kSignal) &&
             !options_.promote_on_exit) {
    return ExitDecision::kRelease;
  }
  begin_death(cause, thread.exit_code);
  return ExitDecision::kHold;
}

void GroupSession::begin_death(DeathCause cause, int wait_status) {
  death_ = Death{.cause = cause,
                 .signal = WIFSIGNALED(wait_status) ? WTERMSIG(wait_status) : 0,
                 .status = WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 0,
                 .seen_us = now_us(),
                 .planned = false,
                 .killed = false,
                 .promote_at_us = 0,
                 .handled = false};
  tree_->wake();
}

// Attached for captures only: the root has gone, and what it was is known from the last epoch.
// Where the kernel does not tell how it ended, it is taken for killed.
void GroupSession::on_unseen_end(std::optional<int> wait_status) {
  if (death_ || phase_ != Phase::kProtected) return;
  root_gone_ = true;
  const int status = wait_status.value_or(SIGKILL);
  const DeathCause cause = cause_of(status);
  begin_death(cause, status);
  const bool ends = cause == DeathCause::kExit || cause == DeathCause::kSignal;
  if (!ends || options_.promote_on_exit) return;
  death_->handled = true;
  end(describe_end(status));
}

void GroupSession::on_process_gone(pid_t pid, int wait_status) {
  capture_->note_gone(pid, wait_status);
  if (pid != tree_->root()) return;
  root_gone_ = true;
  if (phase_ != Phase::kProtected || death_) return;
  if (!options_.attach_always) return on_unseen_end(wait_status);
  begin_death(cause_of(wait_status), wait_status);
  death_->handled = true;
  end(describe_end(wait_status));
}

void GroupSession::handle_death() {
  death_->handled = true;
  set_phase(Phase::kDying);
  decided_us_ = now_us();
  // The worker leaves a copy within one chunk; what it had not copied stays marked.
  capture_->cancel();
  const std::lock_guard lock(worker_mutex_);
  try {
    answer_death();
  } catch (const std::exception& error) {
    give_up(std::string("it was not promoted: ") + error.what());
  }
}

void GroupSession::answer_death() {
  if (death_->planned) return hand_over(capture_last_epoch());
  events_.on_died(death_->cause, death_->signal, death_->status);
  // Threads that nobody followed are gone with their registers, and what does not stand still
  // cannot be read: then the last epoch is the newest whole state.
  const bool whole = options_.attach_always &&
                     tree_->freeze_around_death(options_.pid, kDeathDeadlineUs).frozen &&
                     tree_->follows_all_threads(options_.pid);
  const bool by_itself = death_->cause == DeathCause::kCrash || death_->cause == DeathCause::kExit;
  if (by_itself && options_.retries_left == 0) {
    return end(describe_death() + " with no retries left");
  }
  if (by_itself && options_.crash_delay_us > 0) {
    death_->promote_at_us = now_us() + options_.crash_delay_us;
    return;
  }
  if (by_itself || !whole) return promote_last_epoch();
  std::optional<HandOver> last;
  try {
    last = capture_last_epoch();
  } catch (const std::exception&) {
    // The memory is gone already (the OOM reaper), or something new cannot be replicated.
    return promote_last_epoch();
  }
  hand_over(std::move(*last));
}

std::string GroupSession::describe_death() const {
  return death_->signal != 0 ? "ended by signal " + std::to_string(death_->signal)
                             : "exited with status " + std::to_string(death_->status);
}

// The time before another try to run what crashed has passed.
void GroupSession::promote_after_delay() {
  death_->promote_at_us = 0;
  const std::lock_guard lock(worker_mutex_);
  try {
    promote_last_epoch();
  } catch (const std::exception& error) {
    give_up(std::string("it was not promoted: ") + error.what());
  }
}

// The look for written pages takes its time by the size of memory, and another CPU can take it:
// what a dying process has written does not change any more. In one that is asked by injection it
// may.
GroupSession::HandOver GroupSession::capture_last_epoch() {
  std::future<void> look;
  if (!death_->planned) {
    look = std::async(std::launch::async, [work = capture_->prepare_last_look()] {
      run_before_others();
      work();
    });
  }
  GroupImage image = capture_->capture_state({.last = true,
                                              .inject = death_->planned,
                                              .with_content = false,
                                              .refusals = nullptr,
                                              .unseen_ends = !options_.attach_always});
  if (!death_->planned) restore_dropped_signals(image);
  image.epoch = epoch_ + 1;
  image.generation = options_.generation;
  std::vector<UniqueFd> open_files = capture_->take_descriptors(image);
  if (look.valid()) look.get();
  std::vector<LazyRange> lazy;
  if (runs_->data_pages() > kLastPagesCopiedMax) lazy = runs_->as_lazy(image);
  const auto dense = capture_->copy_last(image, *runs_, kLastPagesCopiedMax);
  lazy.insert(lazy.end(), dense.begin(), dense.end());
  return {std::move(image), std::move(open_files), std::move(lazy), true};
}

void GroupSession::restore_dropped_signals(GroupImage& image) const {
  const KernelReader* reader = KernelReader::instance();
  if (reader == nullptr || reader->dropped_signals() == nullptr) return;
  // From the kill on, which was some time before its first exit stop was seen.
  const uint64_t since_ns = (death_->seen_us - kDeathDeadlineUs) * 1000;
  for (ProcessImage& process : image.processes) {
    reader->dropped_signals()->restore(capture_->host_pid_of(process.pid), since_ns, process);
  }
}

void GroupSession::promote_last_epoch() {
  runs_->clear();
  hand_over({last_image_, match_open_files(), {}, false});
}

// Open files of the dead process that may stand for those of the last epoch. Where they are not to
// be had the replica opens files anew.
std::vector<UniqueFd> GroupSession::match_open_files() {
  std::vector<UniqueFd> matched(last_image_.open_files.size());
  if (!options_.attach_always) return matched;
  try {
    take_matching_files(matched);
  } catch (const SysError&) {
    for (UniqueFd& file : matched) file.reset();
  }
  return matched;
}

void GroupSession::take_matching_files(std::vector<UniqueFd>& matched) {
  const GroupImage now = capture_->capture_state({.slow_state = false,
                                                  .inject = false,
                                                  .with_content = false,
                                                  .refusals = nullptr,
                                                  .unseen_ends = false});
  std::vector<UniqueFd> taken = capture_->take_descriptors(now);
  for (size_t table = 0; table < last_image_.file_tables.size(); ++table) {
    for (const DescriptorImage& descriptor : last_image_.file_tables[table].descriptors) {
      uint32_t position = 0;
      const OpenFileImage* current = file_at(now, table, descriptor.fd, position);
      const OpenFileImage& then = last_image_.open_files.at(descriptor.open_file);
      if (current == nullptr || matched[descriptor.open_file].valid()) continue;
      if (still_the_same(then, *current)) {
        matched[descriptor.open_file] = std::move(taken.at(position));
      }
    }
  }
}

void GroupSession::hand_over(HandOver last) {
  auto& [image, open_files, lazy, exact] = last;
  PageRunList runs = runs_->fitted(image);
  LazyRangeList lazy_list{lazy};
  promotion_ = {.epoch = image.epoch,
                .pid = 0,
                .host_pid = 0,
                .exact = exact,
                .decision_to_run_us = 0,
                .death_to_run_us = 0,
                .lazy_pages = 0};
  for (const LazyRange& range : lazy) {
    promotion_.lazy_pages += (range.end - range.start) / kPageSize;
  }
  send_descriptors(open_files, lazy);
  keeper_->send(MessageType::kStage, PagesMessage{image.epoch, staging_->put(runs)});
  if (death_->planned) kill_primary();
  keeper_->send(MessageType::kPromote, PromoteMessage{.epoch = image.epoch,
                                                      .image = staging_->put(image),
                                                      .exact = exact,
                                                      .keep_files = options_.keep_files,
                                                      .lazy = staging_->put(lazy_list)});
}

// From here on no instruction of the primary can run, whatever becomes of us: never two running. It
// stands at its exit stops until the replica has all pages.
void GroupSession::kill_primary() {
  death_->killed = true;
  for (const auto& [pid, process] : tree_->processes()) ::kill(pid, SIGKILL);
}

void GroupSession::send_descriptors(const std::vector<UniqueFd>& open_files,
                                    const std::vector<LazyRange>& lazy) {
  DescriptorsMessage message;
  std::vector<int> descriptors;
  const auto flush = [&] {
    if (descriptors.empty()) return;
    keeper_->send(MessageType::kDescriptors, message, descriptors);
    message = {};
    descriptors.clear();
  };
  for (uint32_t position = 0; position < open_files.size(); ++position) {
    if (!open_files[position].valid()) continue;
    message.positions.push_back(position);
    descriptors.push_back(open_files[position].get());
    if (descriptors.size() == kDescriptorsMax) flush();
  }
  flush();
  std::vector<UniqueFd> memories;
  for (const LazyRange& range : lazy) {
    if (std::find(message.memory_pids.begin(), message.memory_pids.end(), range.pid) !=
        message.memory_pids.end()) {
      continue;
    }
    const pid_t host = capture_->host_pid_of(range.pid);
    memories.push_back(open_path("/proc/" + std::to_string(host) + "/mem", O_RDONLY));
    message.memory_pids.push_back(range.pid);
    descriptors.push_back(memories.back().get());
  }
  flush();
}

void GroupSession::on_promoted(const PromotedMessage& message) {
  if (phase_ != Phase::kDying) return;
  const uint64_t ran = std::max(message.ran_us, decided_us_);
  promotion_.pid = message.pid;
  promotion_.host_pid = message.host_pid;
  promotion_.decision_to_run_us = ran - decided_us_;
  promotion_.death_to_run_us = ran - death_->seen_us;
  set_phase(Phase::kPromoted);
  events_.on_promoted(promotion_);
  if (planned_) planned_->set_value(promotion_);
  planned_.reset();
}

void GroupSession::on_drained(const DrainedMessage& message) {
  if (phase_ != Phase::kPromoted) return;
  let_go();
  events_.on_drained(message.pages, message.took_us);
}

void GroupSession::on_keeper_lost(const std::string& reason) {
  give_up(phase_ == Phase::kDying ? "promotion failed: " + reason : reason);
}

void GroupSession::give_up(const std::string& reason) {
  switch (phase_) {
    case Phase::kDone:
      return;
    case Phase::kStarting:
    case Phase::kProtected:
      set_phase(Phase::kDone);
      tree_->detach();
      events_.on_unprotected(reason);
      return;
    case Phase::kDying:
      if (death_->planned && !death_->killed) {
        set_phase(Phase::kDone);
        tree_->detach();
        events_.on_unprotected(reason);
        planned_->set_exception(std::make_exception_ptr(KeeperLost(reason)));
        planned_.reset();
        return;
      }
      if (planned_) planned_->set_exception(std::make_exception_ptr(KeeperLost(reason)));
      planned_.reset();
      end(reason);
      return;
    case Phase::kPromoted:
      end("the promoted process was lost before it was drained: " + reason);
      return;
  }
}

// The dying process must not mark robust locks in shared memory as orphaned: its replica owns them
// now (kernel.md 10; get_robust_list(2)).
void GroupSession::empty_robust_lists() {
  for (const auto& [pid, process] : tree_->processes()) {
    const UniqueFd memory(
        ::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDWR | O_CLOEXEC));
    if (!memory.valid()) continue;
    for (const auto& [tid, thread] : process.threads) {
      const uint64_t head = robust_list_of(tid);
      if (head == 0) continue;
      // struct robust_list_head: next, futex_offset, list_op_pending.
      const uint64_t none = 0;
      const bool written =
          ::pwrite(memory.get(), &head, sizeof head, static_cast<off_t>(head)) == sizeof head &&
          ::pwrite(memory.get(), &none, sizeof none, static_cast<off_t>(head + 16)) == sizeof none;
      if (!written) continue;  // the memory is gone already: so is the list
    }
  }
}

void GroupSession::let_go() {
  empty_robust_lists();
  set_phase(Phase::kDone);
  std::vector<pid_t> stopped;
  std::vector<pid_t> processes;
  for (const auto& [pid, process] : tree_->processes()) {
    processes.push_back(pid);
    for (const auto& [tid, thread] : process.threads) {
      if (thread.stop == StopKind::kExit) stopped.push_back(tid);
    }
  }
  for (const pid_t pid : processes) tree_->kill_process(pid);
  for (const pid_t tid : stopped) tree_->release_exit(tid);
}

void GroupSession::end(const std::string& reason) {
  const bool dying = phase_ == Phase::kDying || phase_ == Phase::kPromoted;
  if (dying) let_go();
  set_phase(Phase::kDone);
  events_.on_ended(reason, death_ ? death_->signal : 0, death_ ? death_->status : 0);
}

void GroupSession::set_phase(Phase phase) {
  phase_ = phase;
  phase_.notify_all();
}

}  // namespace replpage
