#include "test/descriptor_fixture.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/group_image.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

constexpr size_t kOperationsMax = 20000;

struct Operation {
  long number;
  uint64_t arguments[6];
  uint8_t kinds[6];
  bool must_succeed;
};

}  // namespace

struct CallProcess::Area {
  std::atomic<uint32_t> turn;  // odd: the child's
  uint64_t count, executed;
  Operation operations[kOperationsMax];
  long results[kOperationsMax];
  uint8_t data[kStubDataBytes];

  static Area* create() {
    void* area =
        ::mmap(nullptr, sizeof(Area), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) throw SysError::from_errno("mmap");
    return static_cast<Area*>(area);
  }
  void wait_while(uint32_t parity) {
    for (;;) {
      const uint32_t now = turn.load();
      if (now % 2 != parity) return;
      ::syscall(SYS_futex, &turn, FUTEX_WAIT, now, nullptr, nullptr, 0);
    }
  }
  void pass() {
    turn.fetch_add(1);
    ::syscall(SYS_futex, &turn, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
  uint64_t resolve(const Operation& operation, int i) const {
    const uint64_t value = operation.arguments[i];
    switch (static_cast<BatchArgument::Kind>(operation.kinds[i])) {
      case BatchArgument::Kind::kDataAddress:
        return reinterpret_cast<uint64_t>(data + value);
      case BatchArgument::Kind::kLoad32: {
        int32_t number = 0;
        std::memcpy(&number, data + value, sizeof number);
        return static_cast<uint64_t>(number);
      }
      case BatchArgument::Kind::kResultOf:
        return static_cast<uint64_t>(results[value]);
      default:
        return value;
    }
  }
  void execute() {
    for (executed = 0; executed < count; ++executed) {
      const Operation& op = operations[executed];
      uint64_t a[6];
      for (int i = 0; i < 6; ++i) a[i] = resolve(op, i);
      const long result = ::syscall(op.number, a[0], a[1], a[2], a[3], a[4], a[5]);
      results[executed] = result == -1 ? -errno : result;
      if (result == -1 && op.must_succeed) {
        ++executed;
        return;
      }
    }
  }
  [[noreturn]] void serve() {
    for (;;) {
      wait_while(0);
      execute();
      pass();
    }
  }
};

CallProcess::CallProcess(const std::function<void()>& prepare) : area_(Area::create()) {
  pid_ = ::fork();
  if (pid_ < 0) throw SysError::from_errno("fork");
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      if (prepare) prepare();
    } catch (const std::exception& error) {
      note(std::string("in the child: ") + error.what());
      ::_exit(1);
    }
    area_->serve();
  }
  call(SYS_getpid);  // prepared
}

CallProcess::~CallProcess() {
  kill();
  ::munmap(area_, sizeof(Area));
}

void CallProcess::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, __WALL);
  pid_ = -1;
}

BatchResult CallProcess::run(const SyscallBatch& batch, int32_t) {
  CHECK(batch.operations().size() <= kOperationsMax);
  area_->count = batch.operations().size();
  for (size_t i = 0; i < area_->count; ++i) {
    const BatchOperation& from = batch.operations()[i];
    Operation& to = area_->operations[i];
    to.number = from.number;
    to.must_succeed = from.must_succeed;
    for (int n = 0; n < 6; ++n) {
      to.arguments[n] = from.arguments[n].value;
      to.kinds[n] = static_cast<uint8_t>(from.arguments[n].kind);
    }
  }
  if (!batch.data().empty()) std::memcpy(area_->data, batch.data().data(), batch.data().size());
  area_->pass();
  for (;;) {
    if (area_->turn.load() % 2 == 0) break;
    const timespec moment{0, 100'000'000};
    ::syscall(SYS_futex, &area_->turn, FUTEX_WAIT, area_->turn.load() | 1, &moment, nullptr, 0);
    if (::waitpid(pid_, nullptr, WNOHANG | __WALL) == pid_) {
      pid_ = -1;
      throw SysError("run a batch: the process ended", ESRCH);
    }
  }
  BatchResult result;
  result.results.assign(area_->results, area_->results + area_->executed);
  result.data.assign(area_->data, area_->data + batch.data().size());
  for (size_t i = 0; i < area_->executed; ++i) {
    if (area_->results[i] < 0 && batch.operations()[i].must_succeed) {
      throw SysError(batch.operations()[i].label, static_cast<int>(-area_->results[i]),
                     on_pid(pid_));
    }
  }
  return result;
}

std::vector<int> CallProcess::receive(std::span<const int> descriptors, int lowest) {
  SyscallBatch batch;
  const size_t test = batch.add("pidfd_open", SYS_pidfd_open, {::getpid(), 0});
  std::vector<size_t> places;
  for (const int fd : descriptors) {
    const size_t low =
        batch.add("pidfd_getfd", SYS_pidfd_getfd, {BatchArgument::result_of(test), fd, 0});
    places.push_back(
        batch.add("fcntl", SYS_fcntl, {BatchArgument::result_of(low), F_DUPFD_CLOEXEC, lowest}));
    batch.add("close", SYS_close, {BatchArgument::result_of(low)});
  }
  batch.add("close", SYS_close, {BatchArgument::result_of(test)});
  const BatchResult result = run(batch);
  std::vector<int> numbers;
  for (const size_t place : places) numbers.push_back(static_cast<int>(result.results[place]));
  return numbers;
}

long CallProcess::call(long number, std::array<BatchArgument, 6> arguments) {
  SyscallBatch batch;
  batch.add("call", number, arguments, false);
  return run(batch).results.at(0);
}

UniqueFd CallProcess::descriptor(int fd) const {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  UniqueFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
  if (!copy.valid()) throw SysError::from_errno("take fd " + std::to_string(fd), on_pid(pid_));
  return copy;
}

std::string CallProcess::link(int fd) const {
  return read_link("/proc/" + std::to_string(pid_) + "/fd/" + std::to_string(fd)).value_or("");
}

std::string CallProcess::info(int fd) const {
  return read_proc("/proc/" + std::to_string(pid_) + "/fdinfo/" + std::to_string(fd)).value_or("");
}

Captured capture_group(DescriptorCapture& capture, const std::vector<pid_t>& primaries,
                       const std::vector<pid_t>& replicas, bool with_content) {
  Captured captured;
  for (size_t i = 0; i < primaries.size(); ++i) {
    captured.input.processes.push_back({.host_pid = primaries[i], .group_pid = replicas[i]});
    captured.image.processes.emplace_back().pid = replicas[i];
  }
  captured.input.refusals = &captured.refusals;
  captured.input.with_content = with_content;
  capture.capture(captured.input, captured.image);
  captured.image = decode<GroupImage>(encode(captured.image));
  return captured;
}

}  // namespace replpage::testing
