// Whole tables: shared ones, streams that lead outside, refusals, damage.
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "test/descriptor_steps.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

TEST(standard_streams_that_lead_outside_go_where_they_are_told) {
  for (const How how : kEveryWay) {
    const std::string log = scratch() + "/log" + std::to_string(static_cast<int>(how));
    int ends[2];
    must(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    const UniqueFd reader(ends[0]);
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
    const UniqueFd stranger(pair[0]);
    CallProcess primary([&] {
      must(::dup2(pair[1], 60) == 60 && ::dup2(ends[1], 61) == 61, "dup2");
      ::close_range(3, 59, 0);
      ::close_range(62, ~0U, 0);
      must(::dup2(60, 0) == 0 && ::dup2(61, 1) == 1 && ::dup2(60, 2) == 2, "dup2");
      must(::dup2(61, 10) == 10, "dup2");
      ::close_range(11, ~0U, 0);
    });
    ::close(ends[1]);
    ::close(pair[1]);
    CallProcess replica;
    move_descriptors(primary, replica, how, log);
    CHECK_EQUAL(replica.link(0), "/dev/null");
    for (const int fd : {1, 2, 10}) {
      CHECK_EQUAL(replica.link(fd), log);
      CHECK_EQUAL(::write(replica.descriptor(fd).get(), "out\n", 4), 4);
    }
    CHECK_EQUAL(read_some(open_path(log, O_RDONLY).get()), "out\nout\nout\n");
  }
}

TEST(other_streams_that_lead_outside_are_handed_over_or_closed) {
  for (const How how : kEveryWay) {
    int ends[2];
    must(::pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0, "pipe2");
    const UniqueFd writer(ends[1]);
    int pair[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0,
         "socketpair");
    const UniqueFd stranger(pair[0]);
    CallProcess primary([&] {
      must(::dup2(pair[1], 60) == 60 && ::dup2(ends[0], 61) == 61, "dup2");
      ::close_range(3, 59, 0);
      ::close_range(62, ~0U, 0);
      for (int fd = 0; fd < 3; ++fd) place(::open("/dev/null", O_RDWR), fd);
    });
    ::close(ends[0]);
    ::close(pair[1]);
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK(file_of(captured.image, 60).outside && file_of(captured.image, 61).outside);
    if (how == How::kHandOver) {
      CHECK_EQUAL(::write(stranger.get(), "hi", 2), 2);
      CHECK_EQUAL(read_some(replica.descriptor(60).get()), "hi");
      CHECK_EQUAL(::write(writer.get(), "yo", 2), 2);
      CHECK_EQUAL(read_some(replica.descriptor(61).get()), "yo");
    } else {
      CHECK_EQUAL(read_some(replica.descriptor(60).get()), "");
      CHECK_EQUAL(read_some(replica.descriptor(61).get()), "");
    }
  }
}

TEST(processes_share_what_they_shared) {
  const std::string path = scratch() + "/shared";
  write_file(path, "0123456789");
  for (const How how : kEveryWay) {
    const UniqueFd file = open_path(path, O_RDWR);
    int ends[2];
    must(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    must(::write(ends[1], "through", 7) == 7, "write");
    const auto keep = [&] {
      must(::dup2(file.get(), 50) == 50, "dup2");
      must(::dup2(ends[0], 51) == 51 && ::dup2(ends[1], 52) == 52, "dup2");
      ::close_range(3, 49, 0);
      ::close_range(53, ~0U, 0);
      for (int fd = 0; fd < 3; ++fd) place(::open("/dev/null", O_RDWR), fd);
    };
    CallProcess first(keep);
    CallProcess second([&] {
      keep();
      ::close(51);
    });
    ::close(ends[0]);
    ::close(ends[1]);
    CallProcess replica1;
    CallProcess replica2;
    const auto capture = DescriptorCapture::create();
    Captured captured =
        capture_group(*capture, {first.pid(), second.pid()}, {replica1.pid(), replica2.pid()});
    CHECK(captured.refusals.empty());
    CHECK_EQUAL(captured.image.file_tables.size(), 2u);
    PromoteInput input;
    input.image = &captured.image;
    input.exact = how == How::kHandOver;
    if (how != How::kRecreate) {
      input.handed = DescriptorCapture::take(captured.input, captured.image);
    }
    first.kill();
    second.kill();
    ReplicaProcess* const processes[] = {&replica1, &replica2};
    (void)install_descriptors(input, processes);
    input.handed.clear();
    CHECK_EQUAL(replica1.call(SYS_lseek, {50, 3, SEEK_SET}), 3);
    CHECK_EQUAL(replica2.call(SYS_lseek, {50, 0, SEEK_CUR}), 3);
    CHECK_EQUAL(read_some(replica1.descriptor(51).get()), "through");
    CHECK_EQUAL(::write(replica2.descriptor(52).get(), "again", 5), 5);
    CHECK_EQUAL(read_some(replica1.descriptor(51).get()), "again");
  }
}

TEST(a_descriptor_table_shared_by_processes_is_captured_once) {
  auto* shared = static_cast<std::atomic<pid_t>*>(
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  CallProcess primary(clean([&] {
    const long child = ::syscall(SYS_clone, CLONE_FILES | SIGCHLD, nullptr, nullptr, nullptr, 0);
    if (child == 0) {
      for (;;) ::pause();
    }
    *shared = static_cast<pid_t>(child);
  }));
  const auto capture = DescriptorCapture::create();
  const Captured captured =
      capture_group(*capture, {primary.pid(), *shared}, {primary.pid(), *shared});
  CHECK_EQUAL(captured.image.file_tables.size(), 1u);
  CHECK_EQUAL(captured.image.processes[1].file_table, 0u);
  ::kill(*shared, SIGKILL);
  ::munmap(shared, 4096);
}

TEST(what_cannot_be_replicated_is_refused_by_name) {
  const pid_t stranger = ::fork();
  if (stranger == 0) {
    ::pause();
    ::_exit(0);
  }
  CallProcess primary(clean([&] {
    place(static_cast<int>(::syscall(SYS_pidfd_open, stranger, 0)), 10);
    place(::open("/dev/ptmx", O_RDWR | O_NOCTTY), 11);
    place(static_cast<int>(::syscall(SYS_userfaultfd, O_NONBLOCK)), 12);
    place(::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), 13);
    place(::open("/proc/self/ns/net", O_RDONLY), 14);
    int ends[2];
    must(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    place(ends[0], 15);
    place(ends[1], 16);
    char data[] = "x";
    char control[CMSG_SPACE(sizeof(int))] = {};
    iovec part{data, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    const int sent = 0;
    std::memcpy(CMSG_DATA(head), &sent, sizeof sent);
    must(::sendmsg(15, &message, 0) == 1, "sendmsg");
  }));
  const auto capture = DescriptorCapture::create();
  const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
  std::string objects;
  for (const Refusal& refusal : captured.refusals) {
    note(refusal.object + " (" + refusal.kind + "): " + refusal.why);
    objects += refusal.object + " ";
  }
  CHECK_EQUAL(objects, "fd 10 fd 11 fd 12 fd 13 fd 14 fd 16 ");
  CallProcess replica;
  PromoteInput input;
  input.image = &captured.image;
  bool refused = false;
  GroupImage image = captured.image;
  image.processes[0].pid = replica.pid();
  input.image = &image;
  try {
    ReplicaProcess* const processes[] = {&replica};
    (void)install_descriptors(input, processes);
  } catch (const SysError& error) {
    refused = error.error() == EOPNOTSUPP;
  }
  CHECK(refused);
  ::kill(stranger, SIGKILL);
  ::waitpid(stranger, nullptr, 0);
}

TEST(damaged_descriptor_images_are_refused) {
  const auto refused = [](const GroupImage& image) {
    try {
      check_descriptor_image(image);
    } catch (const FormatError&) {
      return true;
    }
    return false;
  };
  GroupImage image;
  image.processes.emplace_back();
  CHECK(refused(image));
  image.file_tables.emplace_back();
  CHECK(!refused(image));
  image.file_tables[0].descriptors = {{.fd = 3, .close_on_exec = false, .open_file = 0}};
  CHECK(refused(image));
  image.open_files.emplace_back();
  CHECK(!refused(image));
  image.file_tables[0].descriptors.push_back({.fd = 3, .close_on_exec = false, .open_file = 0});
  CHECK(refused(image));
  image.file_tables[0].descriptors.pop_back();
  image.open_files[0].watches = {{.fd = 3, .events = 0, .data = 0, .target = 9}};
  CHECK(refused(image));
}

}  // namespace
}  // namespace replpage::testing
