#include "core/image/posix_timers.h"

#include <signal.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <string_view>

#include "core/base/procfs.h"

namespace replpage {
namespace {

template <class T>
std::string_view parse_number(std::string_view text, T& value, int base = 10) {
  const auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return text;
}

// "signal/tid.12", "none/pid.12", "thread/pid.12": show_timer in fs/proc/base.c.
void parse_notify(std::string_view text, const std::vector<ThreadImage>& threads,
                  PosixTimer& timer) {
  timer.notify = text.starts_with("none")     ? SIGEV_NONE
                 : text.starts_with("thread") ? SIGEV_THREAD
                                              : SIGEV_SIGNAL;
  const size_t at = text.find("/tid.");
  if (at == std::string_view::npos) return;
  timer.notify |= SIGEV_THREAD_ID;
  int32_t host_tid = 0;
  parse_number(text.substr(at + 5), host_tid);
  for (const ThreadImage& thread : threads) {
    if (thread.host_tid == host_tid) timer.thread = thread.tid;
  }
}

void parse_line(std::string_view line, const std::vector<ThreadImage>& threads,
                std::vector<PosixTimer>& timers) {
  const auto value = [&line](std::string_view key) -> std::string_view {
    return line.starts_with(key) ? line.substr(key.size()) : std::string_view();
  };
  if (const auto id = value("ID: "); !id.empty()) parse_number(id, timers.emplace_back().id);
  if (timers.empty()) return;
  PosixTimer& timer = timers.back();
  if (auto signal = value("signal: "); !signal.empty()) {
    signal = parse_number(signal, timer.signal);
    if (signal.starts_with('/')) parse_number(signal.substr(1), timer.signal_value, 16);
  }
  if (const auto notify = value("notify: "); !notify.empty()) parse_notify(notify, threads, timer);
  if (const auto clock = value("ClockID: "); !clock.empty()) parse_number(clock, timer.clock);
}

// Time left after `elapsed` of a timer that had `value` left and repeats every `interval`.
uint64_t left_after(uint64_t value, uint64_t interval, uint64_t elapsed) {
  if (value == 0 || elapsed < value) return value == 0 ? 0 : value - elapsed;
  return interval == 0 ? 0 : interval - (elapsed - value) % interval;
}

bool counts_real_time(int32_t clock) {
  return clock >= 0 && clock != CLOCK_PROCESS_CPUTIME_ID && clock != CLOCK_THREAD_CPUTIME_ID;
}

}  // namespace

std::optional<std::vector<PosixTimer>> list_posix_timers(pid_t host_pid,
                                                         const std::vector<ThreadImage>& threads) {
  const auto text = read_proc("/proc/" + std::to_string(host_pid) + "/timers");
  if (!text) return std::nullopt;
  std::vector<PosixTimer> timers;
  for (std::string_view left = *text; !left.empty();) {
    const size_t end = std::min(left.find('\n'), left.size());
    parse_line(left.substr(0, end), threads, timers);
    left.remove_prefix(std::min(end + 1, left.size()));
  }
  std::sort(timers.begin(), timers.end(),
            [](const PosixTimer& a, const PosixTimer& b) { return a.id < b.id; });
  return timers;
}

void age_posix_timers(const std::vector<PosixTimer>& previous, uint64_t elapsed_ns,
                      std::vector<PosixTimer>& timers) {
  for (PosixTimer& timer : timers) {
    const auto known = std::find_if(previous.begin(), previous.end(), [&timer](const auto& old) {
      return old.id == timer.id && old.clock == timer.clock;
    });
    if (known == previous.end()) continue;
    const uint64_t elapsed = counts_real_time(timer.clock) ? elapsed_ns : 0;
    timer.value_ns = left_after(known->value_ns, known->interval_ns, elapsed);
    timer.interval_ns = known->interval_ns;
  }
}

void date_back_posix_timers(uint64_t by_ns, std::vector<PosixTimer>& timers) {
  for (PosixTimer& timer : timers) {
    if (timer.value_ns != 0 && counts_real_time(timer.clock)) timer.value_ns += by_ns;
  }
}

void age_real_timer(uint64_t elapsed_us, IntervalTimer& timer) {
  timer.value_us = left_after(timer.value_us, timer.interval_us, elapsed_us);
}

}  // namespace replpage
