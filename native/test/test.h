// A very small test harness: TEST(name) registers, CHECK reports, the runner prints TAP lines.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace replpage::testing {

// Ends the running test as failed.
struct CheckFailed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Ends the running test as skipped, with the reason.
struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Registration {
  Registration(const char* name, void (*body)());
};

// Prints a TAP comment line, for measurements.
void note(const std::string& text);

// How much longer than usual everything may take: REPLPAGE_TEST_SLOWNESS, 1 where it is not set. An
// emulated machine is slow: there nothing that a clock measures is judged.
int slowness();

// Runs `work` when the test is over, however it ends, unless its process crashes.
void at_end(std::function<void()> work);

[[noreturn]] void fail(const char* file, int line, const std::string& what);

template <class A, class B>
void check_equal(const char* file, int line, const char* text, const A& a, const B& b) {
  if (a == b) return;
  std::ostringstream message;
  message << text << " (" << a << " and " << b << ")";
  fail(file, line, message.str());
}

// Runs the registered tests whose names contain one of `parts` (all, where none is given), but none
// that contains a part given with a minus before it. Returns how many failed.
int run_all(const std::vector<std::string>& parts);

}  // namespace replpage::testing

#define TEST(name)                                                                        \
  static void test_##name();                                                              \
  static const ::replpage::testing::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                         \
  do {                                                                           \
    if (!(condition)) ::replpage::testing::fail(__FILE__, __LINE__, #condition); \
  } while (false)

#define CHECK_EQUAL(a, b) \
  ::replpage::testing::check_equal(__FILE__, __LINE__, #a " == " #b, (a), (b))

#define SKIP(reason) throw ::replpage::testing::Skipped(reason)
