// Tables with many descriptors, and descriptors that look alike.
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <random>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "test/descriptor_steps.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

// Says which descriptors of the image are one open file, by the least number of each.
std::map<int, int> least_of_same(const GroupImage& image) {
  std::map<uint32_t, int> least;
  std::map<int, int> same;
  for (const DescriptorImage& descriptor : image.file_tables.at(0).descriptors) {
    same[descriptor.fd] = least.try_emplace(descriptor.open_file, descriptor.fd).first->second;
  }
  return same;
}

TEST(descriptors_that_look_alike_are_told_apart_at_every_epoch) {
  const std::string path = scratch() + "/alike";
  write_file(path, "x");
  CallProcess primary(clean([&] { place(::open(path.c_str(), O_RDONLY), 3); }));
  constexpr int kFirst = 3;
  constexpr int kLast = 40;
  std::map<int, int> files{{kFirst, 0}};  // descriptor -> number of its open file
  int made = 0;
  std::mt19937 random(7);
  const auto pick = [&] { return kFirst + static_cast<int>(random() % (kLast - kFirst)); };
  const auto capture = DescriptorCapture::create();
  for (int epoch = 0; epoch < 60; ++epoch) {
    for (int change = 0; change < 6; ++change) {
      const int to = pick();
      const int from = pick();
      if (random() % 2 == 0 && files.contains(from) && from != to) {
        CHECK_EQUAL(primary.call(SYS_dup3, {from, to, 0}), to);
        files[to] = files[from];
      } else if (files.size() > 1 && files.contains(to)) {
        // As a program does it: what is opened next gets the number.
        CHECK_EQUAL(primary.call(SYS_close, {to}), 0);
        files.erase(to);
      }
      const long opened = primary.call(SYS_dup, {files.begin()->first});
      files[static_cast<int>(opened)] = files.begin()->second;
      if (random() % 2 != 0) continue;
      const UniqueFd anew = open_path(path, O_RDONLY);
      const int fd = anew.get();
      const int got = primary.receive({&fd, 1}, kFirst)[0];
      files[got] = ++made;
    }
    const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
    const auto same = least_of_same(captured.image);
    std::map<int, int> least;
    for (const auto& [fd, file] : files) {
      CHECK_EQUAL(same.at(fd), least.try_emplace(file, fd).first->second);
    }
    CHECK_EQUAL(same.size(), files.size() + 3);
  }
}

TEST(ten_thousand_equal_descriptors_are_captured_fast) {
  constexpr int kMany = 10'000;
  const std::string path = scratch() + "/many";
  write_file(path, "x");
  for (const bool same : {true, false}) {
    CallProcess primary(clean([&] {
      const rlimit limit{kMany + 100, kMany + 100};
      must(::setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
      for (int fd = 3; fd < kMany + 3; ++fd) {
        const int made = same && fd > 3 ? ::dup(3) : ::open(path.c_str(), O_RDONLY);
        must(made == fd, "open");
      }
    }));
    const auto capture = DescriptorCapture::create();
    std::string times;
    for (int epoch = 0; epoch < 4; ++epoch) {
      const uint64_t began = now_us();
      const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
      times += " " + std::to_string((now_us() - began) / 1000);
      CHECK_EQUAL(captured.image.file_tables.at(0).descriptors.size(), kMany + 3u);
      CHECK_EQUAL(captured.image.open_files.size(), same ? 4u : kMany + 3u);
    }
    note(std::string(same ? "one open file" : "as many open files") + ", ms:" + times);
  }
}

TEST(a_table_that_no_limit_allows_is_refused) {
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit limit{200, 500};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct none[2]{};
    ::syscall(SYS_capset, &header, none);
    need_descriptor_limit(500);
    try {
      need_descriptor_limit(501);
    } catch (const SysError& error) {
      ::_exit(error.error() == EPERM ? 7 : 1);
    }
    ::_exit(2);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK_EQUAL(WEXITSTATUS(status), 7);
}

}  // namespace
}  // namespace replpage::testing
