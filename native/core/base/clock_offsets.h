// How far the clocks of one machine or time namespace are ahead of another's (time_namespaces(7)).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <ctime>

namespace replpage {

// Nanoseconds to be added to CLOCK_MONOTONIC (its RAW and COARSE kinds too) and to CLOCK_BOOTTIME.
struct ClockOffsets {
  int64_t monotonic_ns = 0, boottime_ns = 0;
  template <class A>
  void visit(A& a) {
    a(monotonic_ns, boottime_ns);
  }
  bool operator==(const ClockOffsets&) const = default;
  [[nodiscard]] bool none() const { return monotonic_ns == 0 && boottime_ns == 0; }
  // Of a clock that stands still in this regard, such as CLOCK_REALTIME, 0.
  [[nodiscard]] int64_t of(clockid_t clock) const;
};

// What both say one after the other.
ClockOffsets operator+(const ClockOffsets& one, const ClockOffsets& other);
ClockOffsets operator-(const ClockOffsets& one, const ClockOffsets& other);

// The clocks that a primary lives by, as the machine of its replica needs to know them.
struct PrimaryClocks {
  ClockOffsets machine;  // how far its machine's are ahead of ours; none on the same one
  ClockOffsets inside;   // how far its own are ahead of its machine's
  template <class A>
  void visit(A& a) {
    a(machine, inside);
  }
};

struct ClockReadings {  // nanoseconds since some start
  int64_t monotonic_ns = 0, boottime_ns = 0;
  template <class A>
  void visit(A& a) {
    a(monotonic_ns, boottime_ns);
  }
};

// Of the caller's clocks.
ClockReadings read_clocks();

// How far our clocks are ahead of another machine's that answered `theirs` before `ours` was read.
// The answer was on its way in between, so this is too much by that time at most and never too
// little: a program that moves there sees its clocks leap by so much, and never step back.
ClockOffsets ahead_of(const ClockReadings& theirs, const ClockReadings& ours);

// How far clocks of the time namespace that children of the process are made in, and as a rule it
// lives in itself, are ahead of the machine's. Not at all where the kernel has no time namespaces,
// or the process is gone. Throws SysError.
ClockOffsets clock_offsets_of(pid_t pid);

// Makes children of the calling process that are created from now on live in a time namespace whose
// clocks are so far ahead of the caller's. The caller's own clocks stay. Needs CAP_SYS_ADMIN and
// CAP_SYS_TIME; /proc must be one of the caller's PID namespace. Throws SysError, with ERANGE where
// a clock would fall below zero.
void set_clocks_of_children(const ClockOffsets& ahead);
// What was set so; none before.
ClockOffsets clocks_of_children();

}  // namespace replpage
