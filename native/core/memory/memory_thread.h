// A process whose first thread has ended (pthread_exit in main) still has its memory, but
// /proc/PID shows none: any other thread's directory does.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

namespace replpage {

// A thread through which the memory of the process is seen: the process id itself where possible.
// nullopt when the process is gone, a zombie or a kernel thread. Throws SysError.
std::optional<pid_t> memory_thread(pid_t pid);

// "/proc/PID/task/TID/" + name.
std::string thread_file(pid_t pid, pid_t tid, const char* name);

}  // namespace replpage
