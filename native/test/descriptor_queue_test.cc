// Pipes, counters, timers and what waits for them.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#include <cstring>

#include "test/descriptor_steps.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

TEST(pipes_keep_content_and_size) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      int ends[2];
      must(::pipe2(ends, O_NONBLOCK) == 0, "pipe2");
      must(::fcntl(ends[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17, "F_SETPIPE_SZ");
      place(ends[0], 10);
      place(ends[1], 11);
      const std::string text(100000, 'x');
      must(::write(11, text.data(), text.size()) == 100000, "write");
      must(::pipe2(ends, O_DIRECT) == 0, "pipe2");
      place(ends[0], 12);
      place(ends[1], 13);
      must(::write(13, "one", 3) == 3 && ::write(13, "two", 3) == 3, "write");
    }));
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK(!file_of(captured.image, 10).outside);
    const UniqueFd reader = replica.descriptor(10);
    CHECK_EQUAL(::fcntl(reader.get(), F_GETPIPE_SZ), 1 << 17);
    size_t total = 0;
    for (std::string text; (text = read_some(reader.get()))[0] == 'x';) total += text.size();
    CHECK_EQUAL(total, 100000u);
    CHECK(replica.info(10).find("flags:\t04000\n") != std::string::npos);
    CHECK(replica.info(13).find("flags:\t040001\n") != std::string::npos);
    CHECK_EQUAL(read_some(replica.descriptor(12).get()), "one");
    CHECK_EQUAL(read_some(replica.descriptor(12).get()), "two");
  }
}

TEST(capture_leaves_queues_as_they_are) {
  CallProcess primary(clean([] {
    int ends[2];
    must(::pipe(ends) == 0, "pipe");
    place(ends[0], 10);
    place(ends[1], 11);
    must(::write(11, "kept", 4) == 4, "write");
    must(::socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair");
    place(ends[0], 12);
    place(ends[1], 13);
    must(::send(12, "a", 1, 0) == 1 && ::send(12, "bc", 2, 0) == 2, "send");
  }));
  const auto capture = DescriptorCapture::create();
  for (int i = 0; i < 3; ++i) {
    const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
    CHECK_EQUAL(captured.image.open_files.size(), 7u);
    CHECK_EQUAL(file_of(captured.image, 13).socket.queue.size(), 2u);
  }
  CHECK_EQUAL(read_some(primary.descriptor(10).get()), "kept");
  char byte[4];
  const UniqueFd socket = primary.descriptor(13);
  CHECK_EQUAL(::recv(socket.get(), byte, 4, MSG_PEEK | MSG_DONTWAIT), 1);
  CHECK_EQUAL(::recv(socket.get(), byte, 4, MSG_DONTWAIT), 1);
  CHECK_EQUAL(::recv(socket.get(), byte, 4, MSG_DONTWAIT), 2);
}

TEST(counters_timers_and_signal_sets_are_restored) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::eventfd(5, EFD_SEMAPHORE | EFD_NONBLOCK), 10);
      place(::eventfd(7, 0), 11);
      place(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 12);
      const itimerspec later{{3, 0}, {100, 0}};
      must(::timerfd_settime(12, 0, &later, nullptr) == 0, "timerfd_settime");
      place(::timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK), 13);
      const itimerspec soon{{0, 0}, {0, 1}};
      must(::timerfd_settime(13, 0, &soon, nullptr) == 0, "timerfd_settime");
      ::usleep(1000);
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      sigprocmask(SIG_BLOCK, &set, nullptr);
      place(::signalfd(-1, &set, SFD_NONBLOCK), 14);
    }));
    CallProcess replica([] {
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      sigprocmask(SIG_BLOCK, &set, nullptr);
    });
    move_descriptors(primary, replica, how);
    CHECK(replica.info(10).find("eventfd-count:                5\n") != std::string::npos);
    if (primary.info(10).find("eventfd-semaphore:") != std::string::npos) {  // since Linux 6.5
      CHECK(replica.info(10).find("eventfd-semaphore: 1\n") != std::string::npos);
    }
    uint64_t value = 0;
    CHECK(::read(replica.descriptor(11).get(), &value, 8) == 8 && value == 7);
    itimerspec left{};
    CHECK_EQUAL(::timerfd_gettime(replica.descriptor(12).get(), &left), 0);
    CHECK(left.it_value.tv_sec >= 100 - 2 * slowness() && left.it_value.tv_sec <= 100 &&
          left.it_interval.tv_sec == 3);
    CHECK(::read(replica.descriptor(13).get(), &value, 8) == 8 && value == 1);
    ::kill(replica.pid(), SIGUSR1);
    SyscallBatch batch;
    const uint64_t at = batch.reserve(sizeof(signalfd_siginfo));
    batch.add("read", SYS_read, {14, BatchArgument::data(at), sizeof(signalfd_siginfo)});
    const BatchResult result = replica.run(batch);
    signalfd_siginfo info{};
    std::memcpy(&info, result.data.data() + at, sizeof info);
    CHECK_EQUAL(info.ssi_signo, static_cast<uint32_t>(SIGUSR1));
  }
}

// Between its expiry and the read a periodic timer is not armed, and shows no time that is left.
TEST(a_periodic_timer_that_has_expired_keeps_its_beat) {
  constexpr uint64_t kBeatNs = 50'000'000;
  CallProcess primary(clean([] {
    place(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), 12);
    const itimerspec beat{{0, kBeatNs}, {0, kBeatNs}};
    must(::timerfd_settime(12, 0, &beat, nullptr) == 0, "timerfd_settime");
    ::usleep(static_cast<useconds_t>(kBeatNs / 1000 * 5 / 2));
  }));
  CallProcess replica([] {});
  move_descriptors(primary, replica, How::kRecreate);
  for (const uint64_t wanted : {4, 2}) {
    ::usleep(static_cast<useconds_t>(kBeatNs / 1000 * 2));
    uint64_t beats = 0;
    CHECK_EQUAL(::read(replica.descriptor(12).get(), &beats, 8), 8);
    CHECK(beats >= wanted);
  }
}

TEST(epoll_watches_go_on) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::epoll_create1(EPOLL_CLOEXEC), 20, O_CLOEXEC);
      int ends[2];
      must(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
      place(ends[0], 21);
      place(ends[1], 22);
      place(::eventfd(0, 0), 23);
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      sigprocmask(SIG_BLOCK, &set, nullptr);
      place(::signalfd(-1, &set, 0), 24);
      must(::dup2(23, 30) == 30, "dup2");
      const auto watch = [](int fd, uint32_t events) {
        epoll_event event{};
        event.events = events;
        event.data.u64 = static_cast<uint64_t>(fd) + 1000;
        must(::epoll_ctl(20, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
      };
      watch(21, EPOLLIN | EPOLLET);
      watch(24, EPOLLIN);
      watch(30, EPOLLIN);
      ::close(30);  // watched under a number that is not there any more
    }));
    CallProcess replica([] {
      sigset_t set;
      sigemptyset(&set);
      sigaddset(&set, SIGUSR1);
      sigprocmask(SIG_BLOCK, &set, nullptr);
    });
    move_descriptors(primary, replica, how);
    CHECK(ready(replica, 20).empty());
    ::kill(replica.pid(), SIGUSR1);
    CHECK(ready(replica, 20) == std::vector<uint64_t>{1024});
    const uint64_t one = 1;
    CHECK_EQUAL(::write(replica.descriptor(23).get(), &one, 8), 8);
    CHECK_EQUAL(::write(replica.descriptor(22).get(), "x", 1), 1);
    CHECK_EQUAL(ready(replica, 20).size(), 3u);
    CHECK_EQUAL(ready(replica, 20).size(), 2u);  // the edge is told once
    epoll_event event{};
    event.events = EPOLLIN;
    SyscallBatch batch;
    const uint64_t at = batch.put_value(event);
    batch.add("epoll_ctl", SYS_epoll_ctl, {20, EPOLL_CTL_MOD, 21, BatchArgument::data(at)});
    replica.run(batch);
    CHECK_EQUAL(ready(replica, 20).size(), 3u);
  }
}

}  // namespace
}  // namespace replpage::testing
