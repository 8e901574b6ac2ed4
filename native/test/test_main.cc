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

void fail(const char* file, int line, const std::string& what) {
  throw CheckFailed(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

int run_all(const std::string& filter) {
  int number = 0;
  int failures = 0;
  for (const Case& test : cases()) {
    if (test.name.find(filter) == std::string::npos) continue;
    ++number;
    std::string verdict = "ok";
    std::string remark;
    try {
      test.body();
    } catch (const Skipped& skipped) {
      remark = std::string(" # SKIP ") + skipped.what();
    } catch (const std::exception& error) {
      verdict = "not ok";
      note(error.what());
      ++failures;
    }
    std::printf("%s %d - %s%s\n", verdict.c_str(), number, title(test.name).c_str(),
                remark.c_str());
    std::fflush(stdout);
  }
  std::printf("1..%d\n", number);
  return failures;
}

}  // namespace replpage::testing

// An argument selects the tests whose names contain it.
int main(int argc, char** argv) {
  return replpage::testing::run_all(argc > 1 ? argv[1] : "") == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
