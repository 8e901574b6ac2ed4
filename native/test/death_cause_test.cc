#include "core/group/death_cause.h"

#include <csignal>
#include <cstring>

#include "test/test.h"

using namespace replpage;           // NOLINT
using namespace replpage::testing;  // NOLINT

static SignalInfo info_of(int32_t signal) {
  SignalInfo info{};
  std::memcpy(info.data(), &signal, sizeof signal);
  return info;
}

static ProcessImage with_threads(std::initializer_list<uint64_t> blocked) {
  ProcessImage process;
  for (const uint64_t mask : blocked) {
    process.threads.emplace_back();
    process.threads.back().blocked_signals = mask;
  }
  return process;
}

constexpr uint64_t kSegvBit = 1ull << (SIGSEGV - 1);

TEST(a_crash_is_at_hand_where_a_thread_does_not_block_it) {
  ProcessImage process = with_threads({kSegvBit, 0});
  CHECK_EQUAL(crash_at_hand(process), "");
  process.threads[0].pending = {info_of(SIGUSR1), info_of(SIGSEGV)};
  CHECK_EQUAL(crash_at_hand(process), "");  // it blocks it
  process.threads[1].pending = {info_of(SIGTERM), info_of(SIGSEGV)};
  CHECK(crash_at_hand(process).find("signal 11") != std::string::npos);
}

TEST(a_crash_sent_to_a_process_is_at_hand_where_any_thread_takes_it) {
  ProcessImage process = with_threads({kSegvBit, kSegvBit});
  process.pending = {info_of(SIGSEGV)};
  CHECK_EQUAL(crash_at_hand(process), "");
  process.threads[1].blocked_signals = 0;
  CHECK(crash_at_hand(process).find("signal 11") != std::string::npos);
}
