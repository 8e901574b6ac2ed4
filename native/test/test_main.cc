#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "test/test.h"

namespace replpage::testing {
namespace {

struct Case {
  std::string name;
  void (*body)();
};

std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

std::vector<std::function<void()>>& endings() {
  static std::vector<std::function<void()>> list;
  return list;
}

// "queue_keeps_order" reads better in a report as "queue keeps order".
std::string title(std::string name) {
  for (char& c : name) {
    if (c == '_') c = ' ';
  }
  return name;
}

}  // namespace

Registration::Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }

void note(const std::string& text) {
  std::printf("# %s\n", text.c_str());
  std::fflush(stdout);
}

int slowness() {
  static const int times = [] {
    const char* value = std::getenv("REPLPAGE_TEST_SLOWNESS");
    return value == nullptr ? 1 : std::max(1, std::atoi(value));
  }();
  return times;
}

void at_end(std::function<void()> work) { endings().push_back(std::move(work)); }

void fail(const char* file, int line, const std::string& what) {
  throw CheckFailed(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

namespace {

// A test that takes longer hangs.
constexpr unsigned kSecondsMax = 120;
constexpr int kPassed = 0, kFailed = 1, kSkipped = 2;

[[noreturn]] void run_here(const Case& test, int number) {
  ::alarm(kSecondsMax * static_cast<unsigned>(slowness()));
  int outcome = kPassed;
  std::string remark;
  try {
    test.body();
  } catch (const Skipped& skipped) {
    outcome = kSkipped;
    remark = std::string(" # SKIP ") + skipped.what();
  } catch (const std::exception& error) {
    outcome = kFailed;
    note(error.what());
  }
  for (const auto& end : endings()) end();
  std::printf("%s %d - %s%s\n", outcome == kFailed ? "not ok" : "ok", number,
              title(test.name).c_str(), remark.c_str());
  std::fflush(stdout);
  ::_exit(outcome);
}

// Every test has a process of its own: what one maps, opens or leaves running is not there for the
// next, and one that crashes is one that fails.
bool passes(const Case& test, int number) {
  const pid_t child = ::fork();
  if (child == 0) run_here(test, number);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status) != kFailed;
  note("ended by signal " + std::to_string(WTERMSIG(status)));
  std::printf("not ok %d - %s\n", number, title(test.name).c_str());
  std::fflush(stdout);
  return false;
}

}  // namespace

// Whether a test is asked for: by a part of its name, or by no such part; and not left out by a
// part of its name after a minus.
bool is_wanted(const std::string& name, const std::vector<std::string>& parts) {
  bool named = false;
  bool any_named = false;
  for (const std::string& part : parts) {
    const bool leave_out = part.starts_with('-');
    if (name.find(part.substr(leave_out ? 1 : 0)) == std::string::npos) {
      any_named = any_named || !leave_out;
      continue;
    }
    if (leave_out) return false;
    named = true;
  }
  return named || !any_named;
}

int run_all(const std::vector<std::string>& parts) {
  int number = 0;
  int failures = 0;
  for (const Case& test : cases()) {
    if (!is_wanted(test.name, parts)) continue;
    if (!passes(test, ++number)) ++failures;
  }
  std::printf("1..%d\n", number);
  return failures;
}

}  // namespace replpage::testing

// Arguments select the tests whose names contain one of them; with a minus before it, one leaves
// tests out.
int main(int argc, char** argv) {
  return replpage::testing::run_all({argv + 1, argv + argc}) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
