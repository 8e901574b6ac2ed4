#include "core/restore/stub_process.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <exception>
#include <utility>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/address_gaps.h"
#include "core/restore/own_memory.h"

namespace replpage {
namespace {

constexpr int kSignals = 64;
constexpr int kRseqUnregister = 1;  // RSEQ_FLAG_UNREGISTER
constexpr uint64_t kDescriptorsMax = 1u << 20;

// All but SIGTRAP: a breakpoint while it is blocked would reset its action (kernel/signal.c,
// force_sig_info_to_task).
constexpr uint64_t kStubMask = ~(uint64_t{1} << (SIGTRAP - 1));

// Blocks signals in the calling thread, as a child of it is to have them.
class StubSignalMask {
 public:
  StubSignalMask() { set(&kStubMask, &before_); }
  ~StubSignalMask() { set(&before_, nullptr); }
  StubSignalMask(const StubSignalMask&) = delete;
  StubSignalMask& operator=(const StubSignalMask&) = delete;

 private:
  static void set(const uint64_t* to, uint64_t* old) {
    ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, to, old, sizeof *to);
  }
  uint64_t before_ = 0;
};

void add_stub_maps(uint64_t address, BatchArgument fd, SyscallBatch& batch) {
  batch.add(
      "map the stub", SYS_mmap,
      {address, kStubCodeBytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0});
  batch.add("map the stub", SYS_mmap,
            {address + kStubCodeBytes, kStubBytes - kStubCodeBytes, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_FIXED_NOREPLACE, fd, kStubCodeBytes});
}

struct RseqConfiguration {  // __ptrace_rseq_configuration of linux/ptrace.h
  uint64_t pointer = 0;
  uint32_t size = 0, signature = 0, flags = 0, pad = 0;
};
constexpr auto kGetRseqConfiguration = static_cast<__ptrace_request>(0x420f);

// The keeper's libc registered an area that is unmapped soon: the kernel would kill the child.
void add_rseq_removal(pid_t tid, SyscallBatch& batch) {
  RseqConfiguration rseq;
  if (::ptrace(kGetRseqConfiguration, tid, sizeof rseq, &rseq) <= 0 || rseq.pointer == 0) return;
  batch.add("unregister rseq", SYS_rseq,
            {rseq.pointer, rseq.size, kRseqUnregister, rseq.signature});
}

uint64_t find_stub_place(const AddressGaps& gaps, pid_t pid) {
  const auto address = gaps.find(kStubBytes);
  if (!address) throw SysError("find room for the stub", ENOMEM, on_pid(pid));
  return *address;
}

}  // namespace

void add_clone(const CloneRequest& request, SyscallBatch& batch) {
  clone_args args{};
  args.flags = request.flags | CLONE_PTRACE;
  args.exit_signal = static_cast<uint64_t>(request.exit_signal);
  args.set_tid_size = request.pid != 0 ? 1 : 0;
  const uint64_t number = batch.put_value(request.pid);
  const uint64_t at = batch.put_value(args);
  if (request.pid != 0) batch.store_address(at + offsetof(clone_args, set_tid), number);
  batch.add("clone3", SYS_clone3, {BatchArgument::data(at), sizeof args});
}

StubProcess::StubProcess(pid_t pid, std::unique_ptr<Stub> stub, RemoteThread leader,
                         std::vector<MappingImage> special)
    : pid_(pid), stub_(std::move(stub)), running_(stub_.get()), memory_(std::move(special)) {
  threads_.emplace(pid, leader);
}

std::unique_ptr<StubProcess> StubProcess::spawn(pid_t pid) {
  auto stub = std::make_unique<Stub>();
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&pid);
  args.set_tid_size = 1;
  long made = 0;
  {
    const StubSignalMask mask;
    made = ::syscall(SYS_clone3, &args, sizeof args);
    if (made == 0) {
      // No libc here: its thread-local state belongs to the keeper. Waits to be seized.
      asm volatile("1: movl $34, %%eax\n syscall\n jmp 1b" ::: "rax", "rcx", "r11", "memory");
      __builtin_unreachable();
    }
  }
  if (made < 0) throw SysError::from_errno("clone3", on_pid(pid));
  std::unique_ptr<StubProcess> process(
      new StubProcess(pid, std::move(stub), RemoteThread::seize(pid), own_special_mappings()));
  process->leave_keeper_memory();
  (void)syscall_instruction_in_vdso(0);  // takes a while the first time, so not at promotion
  return process;
}

// The child has a copy of the keeper's address space and runs in the keeper's mapping of the stub.
void StubProcess::leave_keeper_memory() {
  AddressGaps gaps;
  for (const OwnMapping& mapping : own_mappings()) gaps.occupy(mapping.range);
  const uint64_t address = find_stub_place(gaps, pid_);
  stub_->set_address(stub_->local_address());
  SyscallBatch first;
  add_stub_maps(address, stub_->memfd(), first);
  add_rseq_removal(pid_, first);
  run(first);

  stub_->set_address(address);
  std::vector<PageRange> keep{stub_range()};
  for (const MappingImage& special : memory_.special()) keep.push_back(special.range());
  SyscallBatch second;
  for (const PageRange& range : complement(std::move(keep))) {
    second.add("unmap the keeper's memory", SYS_munmap, {range.start, range.bytes()});
  }
  second.add("close the keeper's descriptors", SYS_close_range, {0, ~0u, 0});
  const uint64_t default_action = second.reserve(32);
  for (int signal = 1; signal <= kSignals; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    second.add("signal action", SYS_rt_sigaction,
               {signal, BatchArgument::data(default_action), 0, 8});
  }
  second.add("robust list", SYS_set_robust_list, {0, 24});
  const rlimit limit{kDescriptorsMax, kDescriptorsMax};
  second.add("descriptor limit", SYS_prlimit64,
             {0, int{RLIMIT_NOFILE}, BatchArgument::data(second.put_value(limit)), 0}, false);
  run(second);
}

std::unique_ptr<StubProcess> StubProcess::clone(const CloneRequest& request) {
  // What is not to be copied into the child is left out of it, so that a fork of gigabytes costs
  // nothing and takes no memory.
  SyscallBatch batch;
  for (const auto& region : memory_.regions()) {
    if ((region.image.flags & kDontFork) != 0) continue;
    batch.add("madvise", SYS_madvise,
              {region.image.start, region.image.range().bytes(), MADV_DONTFORK});
  }
  add_clone(request, batch);
  for (const auto& region : memory_.regions()) {
    if ((region.image.flags & kDontFork) != 0) continue;
    batch.add("madvise", SYS_madvise,
              {region.image.start, region.image.range().bytes(), MADV_DOFORK});
  }
  run(batch);
  std::unique_ptr<StubProcess> child(new StubProcess(
      request.pid, std::make_unique<Stub>(), RemoteThread::adopt(request.pid), memory_.special()));
  child->leave_parent_stub(*stub_);
  return child;
}

// The child runs in its parent's stub, whose area it shares, until it has its own.
void StubProcess::leave_parent_stub(Stub& parent) {
  const PageRange old{parent.address(), parent.address() + kStubBytes};
  AddressGaps gaps;
  gaps.occupy(old);
  for (const MappingImage& special : memory_.special()) gaps.occupy(special.range());
  const uint64_t address = find_stub_place(gaps, pid_);
  running_ = &parent;
  const int fd = stub_->memfd();
  const int remote = receive({&fd, 1}, 0)[0];
  SyscallBatch maps;
  add_stub_maps(address, remote, maps);
  maps.add("close", SYS_close, {remote});
  run(maps);
  running_ = stub_.get();
  stub_->set_address(address);
  SyscallBatch batch;
  batch.add("unmap the parent's stub", SYS_munmap, {old.start, old.bytes()});
  run(batch);
}

void StubProcess::move_stub(uint64_t address) {
  const PageRange old = stub_range();
  const int fd = stub_->memfd();
  const int remote = receive({&fd, 1}, 0)[0];
  SyscallBatch batch;
  add_stub_maps(address, remote, batch);
  batch.add("close", SYS_close, {remote});
  run(batch);
  stub_->set_address(address);
  SyscallBatch unmap;
  unmap.add("unmap the old stub", SYS_munmap, {old.start, old.bytes()});
  run(unmap);
}

BatchResult StubProcess::run(const SyscallBatch& batch, int32_t tid) {
  return threads_.at(tid == 0 ? pid_ : tid).run(*running_, batch);
}

void StubProcess::begin(int32_t tid, SyscallBatch batch) {
  StubSlot slot;
  if (!started_.empty()) {
    const Started& last = started_.back();
    slot.header = last.slot.header + 1;
    slot.data = (last.slot.data + last.batch.data().size() + 7) & ~uint64_t{7};
    slot.operation = last.slot.operation + last.batch.operations().size();
  }
  slot.operations = batch.operations().size();
  const bool fits = slot.header < kStubSlotsMax &&
                    slot.data + batch.data().size() <= kStubDataBytes &&
                    slot.operation + slot.operations <= kStubOperationsMax &&
                    (started_.empty() || !started_.back().waiting);
  started_.push_back({tid, std::move(batch), slot, !fits});
  Started& started = started_.back();
  if (fits) threads_.at(tid).start(*stub_, started.batch, started.slot);
}

void StubProcess::complete() {
  const std::vector<Started> started = std::exchange(started_, {});
  std::exception_ptr failure;
  for (const Started& one : started) {
    if (one.waiting) continue;
    try {
      threads_.at(one.tid).finish(*stub_, one.batch, one.slot);
    } catch (const SysError&) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
  for (const Started& one : started) {
    if (one.waiting) run(one.batch, one.tid);
  }
}

std::vector<int> StubProcess::receive(std::span<const int> descriptors, int lowest) {
  std::vector<int> numbers;
  if (descriptors.empty()) return numbers;
  SyscallBatch batch;
  const size_t keeper = batch.add("open the keeper", SYS_pidfd_open, {::getpid(), 0});
  std::vector<size_t> taken;
  for (const int fd : descriptors) {
    taken.push_back(batch.add("take a descriptor of the keeper", SYS_pidfd_getfd,
                              {BatchArgument::result_of(keeper), fd, 0}));
    if (lowest == 0) continue;
    const size_t low = taken.back();
    taken.back() = batch.add("move a descriptor", SYS_fcntl,
                             {BatchArgument::result_of(low), F_DUPFD_CLOEXEC, lowest});
    batch.add("close", SYS_close, {BatchArgument::result_of(low)});
  }
  batch.add("close", SYS_close, {BatchArgument::result_of(keeper)});
  const BatchResult result = run(batch);
  numbers.reserve(taken.size());
  for (const size_t index : taken) numbers.push_back(static_cast<int>(result.results[index]));
  return numbers;
}

void StubProcess::make_descriptor_room(size_t descriptors) {
  if (descriptors <= descriptor_room_) return;
  constexpr size_t kLeast = 256;  // a fresh table has room for 64
  const size_t room = std::bit_ceil(std::max(descriptors, kLeast));
  SyscallBatch batch;
  const size_t low = batch.add("make a descriptor", SYS_epoll_create1, {0});
  // Beyond the limit for descriptors this fails, and promotion raises the limit and waits.
  const size_t high = batch.add("widen the descriptor table", SYS_fcntl,
                                {BatchArgument::result_of(low), F_DUPFD, room - 1}, false);
  batch.add("close", SYS_close, {BatchArgument::result_of(high)}, false);
  batch.add("close", SYS_close, {BatchArgument::result_of(low)});
  run(batch);
  descriptor_room_ = room;
}

void StubProcess::shape_threads(const ProcessImage& image) {
  std::map<int32_t, bool> wanted;
  for (const ThreadImage& thread : image.threads) wanted[thread.tid] = true;
  if (!wanted.contains(pid_)) {
    throw SysError("build a process whose first thread has ended", ENOTSUP, on_pid(pid_));
  }
  SyscallBatch exit;
  exit.add("exit", SYS_exit, {0});
  for (auto thread = threads_.begin(); thread != threads_.end();) {
    if (wanted.contains(thread->first)) {
      ++thread;
      continue;
    }
    thread->second.run_to_end(*stub_, exit);
    thread = threads_.erase(thread);
  }
  constexpr uint64_t kThreadFlags =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  SyscallBatch clones;
  std::vector<int32_t> created;
  for (const auto& [tid, unused] : wanted) {
    if (threads_.contains(tid)) continue;
    add_clone({.pid = tid, .flags = kThreadFlags}, clones);
    created.push_back(tid);
  }
  if (created.empty()) return;
  run(clones);
  for (const int32_t tid : created) threads_.emplace(tid, RemoteThread::adopt(tid));
}

void StubProcess::shape_memory(const ProcessImage& image, const MappedSources& sources) {
  AddressGaps gaps;
  bool in_the_way = false;
  const PageRange stub = stub_range();
  for (const MappingImage& mapping : image.mappings) {
    in_the_way |= mapping.start < stub.end && stub.start < mapping.end;
    gaps.occupy(mapping.range());
  }
  if (in_the_way) {
    gaps.occupy(stub);
    for (const auto& region : memory_.regions()) gaps.occupy(region.image.range());
    for (const MappingImage& special : memory_.special()) gaps.occupy(special.range());
    move_stub(find_stub_place(gaps, pid_));
  }
  memory_.shape(*this, image.mappings, stub_range(), sources);
}

int StubProcess::end(const SyscallBatch& last) {
  SyscallBatch exit;
  exit.add("exit", SYS_exit, {0});
  for (auto& [tid, thread] : threads_) {
    if (tid != pid_) thread.run_to_end(*stub_, exit);
  }
  return leader().run_to_end(*stub_, last);
}

void StubProcess::kill() {
  if (::kill(pid_, SIGKILL) != 0) throw SysError::from_errno("kill", on_pid(pid_));
  for (auto& [tid, thread] : threads_) {
    if (tid != pid_) thread.wait_end();
  }
  leader().wait_end();
}

PageRange StubProcess::stub_range() const {
  return {stub_->address(), stub_->address() + kStubBytes};
}

int StubProcess::memory_file() {
  if (!memory_file_.valid()) {
    memory_file_ = open_path("/proc/" + std::to_string(pid_) + "/mem", O_RDWR);
  }
  return memory_file_.get();
}

uint64_t StubProcess::resident_bytes() const {
  const auto text = read_proc("/proc/" + std::to_string(pid_) + "/statm");
  if (!text) return 0;
  unsigned long size = 0, resident = 0;
  if (std::sscanf(text->c_str(), "%lu %lu", &size, &resident) != 2) return 0;
  return resident * kPageSize;
}

}  // namespace replpage
