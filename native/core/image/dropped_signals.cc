#include "core/image/dropped_signals.h"

#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

namespace replpage {
namespace {

constexpr uint32_t kEntries = 1024;  // a power of two: the program masks the counter
constexpr size_t kInfoBytes = 48;    // struct kernel_siginfo of x86-64
constexpr int32_t kIgnored = 1;      // TRACE_SIGNAL_IGNORED
constexpr int32_t kGroupExit = 4;    // SIGNAL_GROUP_EXIT
constexpr uint64_t kFromNobody = 0;  // SEND_SIG_NOINFO
constexpr uint64_t kFromKernel = 1;  // SEND_SIG_PRIV
constexpr int16_t kRingHeaderBytes = 64;

}  // namespace

struct DroppedSignals::Entry {
  uint64_t time_ns;   // written last; 0: not complete
  uint32_t tid, pid;  // whom it was for
  uint32_t sender_tid, sender_pid;
  uint32_t signal, to_process;
  uint64_t source;  // the kernel's pointer to the information, or one of the above
  std::array<uint8_t, kInfoBytes> info;
  uint8_t padding[40];
};

struct DroppedSignals::Ring {
  uint64_t count;
  uint8_t padding[kRingHeaderBytes - sizeof(uint64_t)];
  Entry entries[kEntries];
};

namespace {

using namespace bpf;

// Arguments of the tracepoint, as 64-bit words (include/trace/events/signal.h).
enum Argument : int16_t { kSignal = 0, kInfo = 8, kTask = 16, kGroup = 24, kResult = 32 };

struct Layout {
  int32_t task_signal, task_pid, signal_flags;
};

// Copies 8 bytes or fewer of kernel memory at r3 to the stack, 8 bytes below the frame pointer.
void read_to_stack(std::vector<Instruction>& code, int32_t bytes) {
  code.insert(code.end(), {move(1, 10), alu(BPF_ADD, 1, -8), set(2, bytes),
                           call_helper(BPF_FUNC_probe_read_kernel)});
}

// r6: the arguments, r7: the task, r8: the entry. Ends where the signal was not dropped for dying.
std::vector<Instruction> make_program(int map, const Layout& at, int entry_bytes_shift,
                                      const std::array<int16_t, 8>& field) {
  const auto [time, tid, sender, signal, to_process, source, info, header] = field;
  std::vector<Instruction> code = {
      move(6, 1),
      load(BPF_DW, 1, 6, kResult),
      jump_if(BPF_JEQ, 1, kIgnored, 2),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
      load(BPF_DW, 1, 6, kSignal),
      jump_if(BPF_JNE, 1, SIGKILL, 2),
      set(0, 0),
      instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
      load(BPF_DW, 7, 6, kTask),
      move(3, 7),
      alu(BPF_ADD, 3, at.task_signal),
  };
  read_to_stack(code, sizeof(uint64_t));
  code.insert(code.end(), {load(BPF_DW, 3, 10, -8), alu(BPF_ADD, 3, at.signal_flags)});
  read_to_stack(code, sizeof(uint32_t));
  code.insert(code.end(),
              {
                  load(BPF_W, 1, 10, -8),
                  alu(BPF_AND, 1, kGroupExit),
                  jump_if(BPF_JNE, 1, 0, 2),
                  set(0, 0),
                  instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
                  instruction(BPF_LD | BPF_DW | BPF_IMM, 8, BPF_PSEUDO_MAP_VALUE, 0, map),
                  instruction(0, 0, 0, 0, 0),
                  set(1, 1),
                  instruction(BPF_STX | BPF_DW | BPF_ATOMIC, 8, 1, 0, BPF_ADD | BPF_FETCH),
                  alu(BPF_AND, 1, kEntries - 1),
                  alu(BPF_LSH, 1, entry_bytes_shift),
                  add(8, 1),
                  alu(BPF_ADD, 8, header),
                  set(1, 0),
                  store(BPF_DW, 8, 1, time),
                  // The task's two ids are neighbours.
                  move(1, 8),
                  alu(BPF_ADD, 1, tid),
                  set(2, 2 * sizeof(uint32_t)),
                  move(3, 7),
                  alu(BPF_ADD, 3, at.task_pid),
                  call_helper(BPF_FUNC_probe_read_kernel),
                  call_helper(BPF_FUNC_get_current_pid_tgid),
                  store(BPF_DW, 8, 0, sender),
                  load(BPF_DW, 1, 6, kSignal),
                  store(BPF_W, 8, 1, signal),
                  load(BPF_DW, 1, 6, kGroup),
                  store(BPF_W, 8, 1, to_process),
                  load(BPF_DW, 3, 6, kInfo),
                  store(BPF_DW, 8, 3, source),
                  move(1, 8),
                  alu(BPF_ADD, 1, info),
                  set(2, kInfoBytes),
                  call_helper(BPF_FUNC_probe_read_kernel),
                  call_helper(BPF_FUNC_ktime_get_ns),
                  store(BPF_DW, 8, 0, time),
                  set(0, 0),
                  instruction(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
              });
  return code;
}

// Whether a thread's last system call was one that sends a signal to a thread it may be itself.
bool was_sending(const ThreadImage& thread) {
  switch (thread.registers.orig_rax) {
    case SYS_kill:
    case SYS_tkill:
    case SYS_tgkill:
    case SYS_rt_sigqueueinfo:
    case SYS_rt_tgsigqueueinfo:
    case SYS_pidfd_send_signal:
      return true;
    default:
      return false;
  }
}

}  // namespace

DroppedSignals::DroppedSignals(const BtfTypes& types) : area_(sizeof(Ring)) {
  static_assert(sizeof(Entry) == 128 && offsetof(Ring, entries) == kRingHeaderBytes);
  const auto offset = [&types](const char* structure, const char* member) {
    return static_cast<int32_t>(types.offset(structure, member));
  };
  const Layout layout = {.task_signal = offset("task_struct", "signal"),
                         .task_pid = offset("task_struct", "pid"),
                         .signal_flags = offset("signal_struct", "flags")};
  const auto at = [](size_t member) { return static_cast<int16_t>(member); };
  const auto code = make_program(
      area_.map(), layout, 7,
      {at(offsetof(Entry, time_ns)), at(offsetof(Entry, tid)), at(offsetof(Entry, sender_tid)),
       at(offsetof(Entry, signal)), at(offsetof(Entry, to_process)), at(offsetof(Entry, source)),
       at(offsetof(Entry, info)), kRingHeaderBytes});
  program_ = load_program(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, code);
  attached_ = attach_to_tracepoint("signal_generate", program_);
}

std::vector<DroppedSignals::Entry> DroppedSignals::entries_of(pid_t host_pid,
                                                              uint64_t since_ns) const {
  const Ring& ring = *static_cast<const Ring*>(area_.data());
  std::vector<Entry> found;
  for (const Entry& entry : ring.entries) {
    const uint64_t time = __atomic_load_n(&entry.time_ns, __ATOMIC_ACQUIRE);
    if (time < since_ns || entry.pid != static_cast<uint32_t>(host_pid)) continue;
    found.push_back(entry);
  }
  std::sort(found.begin(), found.end(),
            [](const Entry& a, const Entry& b) { return a.time_ns < b.time_ns; });
  return found;
}

void DroppedSignals::restore(pid_t host_pid, uint64_t since_ns, ProcessImage& image) const {
  const auto thread_of = [&image](uint32_t host_tid) {
    return std::find_if(image.threads.begin(), image.threads.end(), [&](const ThreadImage& t) {
      return static_cast<uint32_t>(t.host_tid) == host_tid;
    });
  };
  size_t given_back = 0;
  std::vector<size_t> given_back_of(image.threads.size());
  for (const Entry& entry : entries_of(host_pid, since_ns)) {
    SignalInfo info{};
    std::memcpy(info.data(), entry.info.data(), entry.info.size());
    if (entry.source == kFromNobody || entry.source == kFromKernel) {
      const int32_t fields[] = {static_cast<int32_t>(entry.signal), 0,
                                entry.source == kFromKernel ? SI_KERNEL : SI_USER};
      std::memcpy(info.data(), fields, sizeof fields);
    }
    const auto receiver = thread_of(entry.tid);
    if (entry.to_process == 0 && receiver == image.threads.end()) continue;
    // What a thread gave back when it was killed had been the first of its queue.
    const auto sender = thread_of(entry.sender_tid);
    const bool first =
        entry.sender_tid == entry.tid && sender != image.threads.end() && !was_sending(*sender);
    if (entry.signal == SIGCONT && image.job_control == JobControl::kStopped) {
      image.job_control = JobControl::kRuns;
    }
    auto& queue = entry.to_process != 0 ? image.pending : receiver->pending;
    size_t& place = entry.to_process != 0
                        ? given_back
                        : given_back_of[static_cast<size_t>(receiver - image.threads.begin())];
    if (first) {
      queue.insert(queue.begin() + static_cast<ptrdiff_t>(place++), info);
    } else {
      queue.push_back(info);
    }
  }
}

}  // namespace replpage
