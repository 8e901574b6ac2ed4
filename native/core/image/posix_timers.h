// POSIX timers of a process as /proc tells them.
#pragma once

#include <sys/types.h>

#include <optional>
#include <vector>

#include "core/image/process_image.h"

namespace replpage {

// From /proc/PID/timers, ascending by id, without values: the file has none. Thread ids are turned
// into those of the group's own PID namespace by `threads`. nullopt: gone.
std::optional<std::vector<PosixTimer>> list_posix_timers(pid_t host_pid,
                                                         const std::vector<ThreadImage>& threads);

// Gives `timers` the values that timers of the same id had `elapsed_ns` ago, as far as those that
// count real time have run since. Timers on CPU time keep their values.
void age_posix_timers(const std::vector<PosixTimer>& previous, uint64_t elapsed_ns,
                      std::vector<PosixTimer>& timers);
// What is left of them was read `by_ns` later than it is to be told of.
void date_back_posix_timers(uint64_t by_ns, std::vector<PosixTimer>& timers);
void age_real_timer(uint64_t elapsed_us, IntervalTimer& timer);

}  // namespace replpage
