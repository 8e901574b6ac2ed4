// Descriptors captured from one process and restored into another: by state and by behaviour.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <cstring>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "test/descriptor_fixture.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

void must(bool good, const char* what) {
  if (!good) throw SysError::from_errno(what);
}

// Gives an open file the number the test wants.
void place(int fd, int number, int flags = 0) {
  must(fd >= 0, "open");
  if (fd == number) return;
  must(::dup3(fd, number, flags) == number, "dup3");
  ::close(fd);
}

std::string scratch() {
  static const std::string directory = [] {
    char name[] = "/tmp/descriptor-test-XXXXXX";
    must(::mkdtemp(name) != nullptr, "mkdtemp");
    return std::string(name);
  }();
  return directory;
}

void write_file(const std::string& path, const std::string& text) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  must(file.valid() &&
           ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()),
       "write");
}

std::string read_some(int fd) {
  char text[65536];
  const ssize_t got = ::read(fd, text, sizeof text);
  return got < 0 ? std::string("error ") + std::strerror(errno)
                 : std::string(text, static_cast<size_t>(got));
}

const OpenFileImage& file_of(const GroupImage& image, int fd, size_t table = 0) {
  for (const DescriptorImage& d : image.file_tables.at(table).descriptors) {
    if (d.fd == fd) return image.open_files.at(d.open_file);
  }
  throw SysError("find fd " + std::to_string(fd), ENOENT);
}

// A process whose descriptors 3 and up are what `prepare` opens; 0, 1, 2 are /dev/null.
std::function<void()> clean(std::function<void()> prepare) {
  return [prepare = std::move(prepare)] {
    ::close_range(3, ~0U, 0);
    for (int fd = 0; fd < 3; ++fd) place(::open("/dev/null", O_RDWR), fd);
    prepare();
  };
}

enum class How { kHandOver, kCrash, kRecreate };

// Captures `primary`, restores into `replica`, ends `primary`.
Captured move_descriptors(CallProcess& primary, CallProcess& replica, How how,
                          const std::string& stream_path = "") {
  const auto capture = DescriptorCapture::create();
  Captured captured = capture_group(*capture, {primary.pid()}, {replica.pid()});
  for (const Refusal& refusal : captured.refusals) note(refusal.object + ": " + refusal.why);
  CHECK(captured.refusals.empty());
  PromoteInput input;
  input.image = &captured.image;
  input.exact = how == How::kHandOver;
  if (how != How::kRecreate) input.handed = DescriptorCapture::take(captured.input, captured.image);
  if (!stream_path.empty()) {
    input.outside_stream = open_path(stream_path, O_WRONLY | O_CREAT | O_APPEND, 0644);
  }
  if (how == How::kRecreate) primary.kill();
  ReplicaProcess* const processes[] = {&replica};
  (void)install_descriptors(input, processes);
  primary.kill();
  return captured;
}

constexpr How kEveryWay[] = {How::kHandOver, How::kCrash, How::kRecreate};

TEST(files_keep_path_position_and_flags) {
  const std::string path = scratch() + "/regular";
  for (const How how : kEveryWay) {
    write_file(path, "0123456789");
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDWR | O_APPEND), 5, O_CLOEXEC);
      must(::lseek(5, 4, SEEK_SET) == 4, "lseek");
      must(::dup2(5, 9) == 9, "dup2");
      place(::open(path.c_str(), O_RDONLY | O_NONBLOCK), 7);
      place(::open(scratch().c_str(), O_RDONLY | O_DIRECTORY), 11);
      place(::open("/dev/urandom", O_RDONLY), 12);
      place(::open(path.c_str(), O_PATH), 13);
      place(::open("/proc/uptime", O_RDONLY), 14);
    }));
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(captured.image.file_tables[0].descriptors.size(), 10u);
    CHECK_EQUAL(replica.link(5), path);
    const std::string info = replica.info(5);
    CHECK(info.find("pos:\t4\n") != std::string::npos);
    CHECK(info.find("flags:\t02102002\n") != std::string::npos);  // O_CLOEXEC O_APPEND O_RDWR
    CHECK(replica.info(9).find("flags:\t0102002\n") != std::string::npos);
    CHECK(replica.info(7).find("flags:\t0104000\n") != std::string::npos);
    CHECK(replica.info(13).find("flags:\t010000000\n") != std::string::npos);
    CHECK_EQUAL(replica.link(11), scratch());
    CHECK_EQUAL(replica.link(12), "/dev/urandom");
    CHECK_EQUAL(replica.link(6), "");
    CHECK_EQUAL(replica.link(15), "");
    CHECK_EQUAL(replica.call(SYS_lseek, {5, 2, SEEK_SET}), 2);
    CHECK_EQUAL(replica.call(SYS_lseek, {9, 0, SEEK_CUR}), 2);  // still one description
  }
}

TEST(a_deleted_file_keeps_its_content) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      const std::string path = scratch() + "/deleted";
      write_file(path, "gone but not lost");
      place(::open(path.c_str(), O_RDWR), 5);
      place(::open(path.c_str(), O_RDONLY), 6);
      must(::lseek(6, 5, SEEK_SET) == 5, "lseek");
      ::unlink(path.c_str());
      place(::open(scratch().c_str(), O_TMPFILE | O_RDWR, 0600), 7);
      must(::write(7, "tmp", 3) == 3, "write");
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(read_some(replica.descriptor(6).get()), "but not lost");
    CHECK_EQUAL(replica.call(SYS_ftruncate, {5, 4}), 0);
    CHECK_EQUAL(replica.call(SYS_lseek, {6, 0, SEEK_END}), 4);  // both are one file
    CHECK_EQUAL(replica.call(SYS_lseek, {7, 0, SEEK_CUR}), 3);
    CHECK_EQUAL(replica.call(SYS_lseek, {7, 0, SEEK_END}), 3);
  }
}

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
    CHECK(replica.info(10).find("eventfd-semaphore: 1\n") != std::string::npos);
    uint64_t value = 0;
    CHECK(::read(replica.descriptor(11).get(), &value, 8) == 8 && value == 7);
    itimerspec left{};
    CHECK_EQUAL(::timerfd_gettime(replica.descriptor(12).get(), &left), 0);
    CHECK(left.it_value.tv_sec >= 98 && left.it_value.tv_sec <= 100 &&
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

// What epoll_wait tells in the process: data of the ready watches.
std::vector<uint64_t> ready(CallProcess& process, int epoll) {
  SyscallBatch batch;
  const uint64_t at = batch.reserve(16 * sizeof(epoll_event));
  batch.add("epoll_wait", SYS_epoll_wait, {epoll, BatchArgument::data(at), 16, 0});
  const BatchResult result = process.run(batch);
  std::vector<uint64_t> data;
  for (long i = 0; i < result.results[0]; ++i) {
    epoll_event event{};
    std::memcpy(&event, result.data.data() + at + static_cast<size_t>(i) * sizeof event,
                sizeof event);
    data.push_back(event.data.u64);
  }
  return data;
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

TEST(unix_pairs_keep_what_is_queued) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      int ends[2];
      must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 10);
      place(ends[1], 11);
      const std::string text(150000, 'y');
      must(::write(10, text.data(), text.size()) == 150000, "write");
      must(::write(11, "back", 4) == 4, "write");
      must(::shutdown(11, SHUT_WR) == 0, "shutdown");
      must(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 12);
      place(ends[1], 13);
      must(::write(12, "first", 5) == 5 && ::write(12, "second", 6) == 6, "write");
      must(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
      place(ends[0], 14);
      must(::write(ends[1], "last words", 10) == 10, "write");
      ::close(ends[1]);
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    const UniqueFd stream = replica.descriptor(11);
    size_t total = 0;
    for (std::string text; (text = read_some(stream.get()))[0] == 'y';) total += text.size();
    CHECK_EQUAL(total, 150000u);
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "back");
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "");  // shut down
    CHECK_EQUAL(::write(replica.descriptor(10).get(), "on", 2), 2);
    CHECK_EQUAL(read_some(replica.descriptor(11).get()), "on");
    CHECK_EQUAL(read_some(replica.descriptor(13).get()), "first");
    CHECK_EQUAL(read_some(replica.descriptor(13).get()), "second");
    CHECK_EQUAL(read_some(replica.descriptor(14).get()), "last words");
    CHECK_EQUAL(read_some(replica.descriptor(14).get()), "");
  }
}

int option(int socket, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  ::getsockopt(socket, level, name, &value, &size);
  return value;
}

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = port;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

uint16_t port_of(int socket) {
  sockaddr_in address{};
  socklen_t size = sizeof address;
  ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  return address.sin_port;
}

void set_option(int socket, int level, int name, int value) {
  must(::setsockopt(socket, level, name, &value, sizeof value) == 0, "setsockopt");
}

UniqueFd connect_to(uint16_t port) {
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = loopback(port);
  must(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0,
       "connect");
  return client;
}

void open_tcp_server() {
  place(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), 10, 0);
  set_option(10, SOL_SOCKET, SO_REUSEADDR, 1);
  set_option(10, SOL_SOCKET, SO_REUSEPORT, 1);
  set_option(10, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(10, SOL_SOCKET, SO_RCVBUF, 100000);
  set_option(10, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(10, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3);
  sockaddr_in address = loopback(0);
  must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  must(::listen(10, 77) == 0, "listen");
}

TEST(listening_sockets_keep_address_and_options) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean(open_tcp_server));
    const uint16_t port = port_of(primary.descriptor(10).get());
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).socket.backlog, 77);
    const UniqueFd server = replica.descriptor(10);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_REUSEADDR), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_REUSEPORT), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_KEEPALIVE), 1);
    CHECK_EQUAL(option(server.get(), SOL_SOCKET, SO_RCVBUF), 200000);
    CHECK_EQUAL(option(server.get(), IPPROTO_TCP, TCP_NODELAY), 1);
    CHECK_EQUAL(option(server.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT), 3);
    tcp_info info{};
    socklen_t size = sizeof info;
    ::getsockopt(server.get(), IPPROTO_TCP, TCP_INFO, &info, &size);
    CHECK_EQUAL(info.tcpi_sacked, 77u);
    const UniqueFd client = connect_to(port);
    CHECK_EQUAL(::write(client.get(), "hello", 5), 5);
    pollfd waiting{server.get(), POLLIN, 0};
    CHECK_EQUAL(::poll(&waiting, 1, 2000), 1);
    const UniqueFd accepted(::accept(server.get(), nullptr, nullptr));
    CHECK_EQUAL(read_some(accepted.get()), "hello");
  }
}

TEST(established_connections_are_handed_over_or_reset) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::socket(AF_INET, SOCK_STREAM, 0), 10);
      sockaddr_in address = loopback(0);
      must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      must(::listen(10, 5) == 0, "listen");
      place(::epoll_create1(0), 20);
    }));
    const UniqueFd client = connect_to(port_of(primary.descriptor(10).get()));
    CHECK_EQUAL(primary.call(SYS_accept4, {10, 0, 0, 0}), 3);
    CHECK_EQUAL(primary.call(SYS_dup2, {3, 15}), 15);
    primary.call(SYS_close, {3});
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = 7;
    SyscallBatch batch;
    const uint64_t at = batch.put_value(event);
    batch.add("epoll_ctl", SYS_epoll_ctl, {20, EPOLL_CTL_ADD, 15, BatchArgument::data(at)});
    primary.run(batch);
    CHECK_EQUAL(::write(client.get(), "ping", 4), 4);
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK(file_of(captured.image, 15).socket.connected);
    CHECK(ready(replica, 20) == std::vector<uint64_t>{7});
    const UniqueFd server = replica.descriptor(15);
    if (how == How::kHandOver) {
      CHECK_EQUAL(read_some(server.get()), "ping");
      CHECK_EQUAL(::write(server.get(), "pong", 4), 4);
      CHECK_EQUAL(read_some(client.get()), "pong");
    } else {
      CHECK_EQUAL(read_some(server.get()), "error Connection reset by peer");
      CHECK_EQUAL(read_some(server.get()), "");
      CHECK_EQUAL(::send(server.get(), "x", 1, MSG_NOSIGNAL), -1);
      CHECK_EQUAL(errno, EPIPE);
      const std::string end = read_some(client.get());
      CHECK(end.empty() || end == "error Connection reset by peer");
    }
  }
}

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

void open_unix_server(const std::string& path) {
  place(::socket(AF_UNIX, SOCK_STREAM, 0), 10);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  must(::chmod(path.c_str(), 0620) == 0, "chmod");
  must(::listen(10, 9) == 0, "listen");
}

TEST(unix_and_udp_servers_can_be_reached) {
  for (const How how : kEveryWay) {
    const std::string path = scratch() + "/socket" + std::to_string(static_cast<int>(how));
    CallProcess primary(clean([&] {
      open_unix_server(path);
      place(::socket(AF_INET, SOCK_DGRAM, 0), 11);
      set_option(11, SOL_SOCKET, SO_BROADCAST, 1);
      sockaddr_in address = loopback(0);
      must(::bind(11, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      address.sin_port = port_of(11);
      place(::socket(AF_INET, SOCK_DGRAM, 0), 12);
      must(::connect(12, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
      place(::socket(AF_NETLINK, SOCK_RAW, 0), 13);
    }));
    const uint16_t port = port_of(primary.descriptor(11).get());
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).socket.backlog, 9);
    const UniqueFd client(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    CHECK_EQUAL(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    CHECK(replica.call(SYS_accept4, {10, 0, 0, 0}) >= 0);
    struct stat status {};
    CHECK(::stat(path.c_str(), &status) == 0 && (status.st_mode & 0777) == 0620);
    CHECK_EQUAL(port_of(replica.descriptor(11).get()), port);
    CHECK_EQUAL(option(replica.descriptor(11).get(), SOL_SOCKET, SO_BROADCAST), 1);
    CHECK_EQUAL(::write(replica.descriptor(12).get(), "datagram", 8), 8);
    CHECK_EQUAL(read_some(replica.descriptor(11).get()), "datagram");
    CHECK_EQUAL(option(replica.descriptor(13).get(), SOL_SOCKET, SO_DOMAIN), AF_NETLINK);
  }
}

TEST(inotify_goes_on_watching) {
  const std::string path = scratch() + "/watched";
  ::mkdir(path.c_str(), 0755);
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      place(::inotify_init1(IN_NONBLOCK), 10);
      must(::inotify_add_watch(10, "/tmp", IN_MOVED_TO) == 1, "inotify_add_watch");
      must(::inotify_rm_watch(10, 1) == 0, "inotify_rm_watch");
      must(::inotify_add_watch(10, path.c_str(), IN_CREATE | IN_DELETE) == 2, "inotify_add_watch");
      char events[4096];
      (void)!::read(10, events, sizeof events);
    }));
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).notify_watches.at(0).path, path);
    CHECK(read_some(replica.descriptor(10).get()).starts_with("error"));
    write_file(path + "/new", "");
    const std::string event = read_some(replica.descriptor(10).get());
    inotify_event head{};
    CHECK(event.size() > sizeof head);
    std::memcpy(&head, event.data(), sizeof head);
    CHECK_EQUAL(head.wd, 2);
    CHECK_EQUAL(head.mask, static_cast<uint32_t>(IN_CREATE));
    ::unlink((path + "/new").c_str());
  }
}

bool can_lock(const std::string& path, off_t start) {
  const UniqueFd file = open_path(path, O_RDWR);
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = start;
  range.l_len = 1;
  return ::fcntl(file.get(), F_OFD_SETLK, &range) == 0;
}

TEST(locks_are_held_again) {
  const std::string path = scratch() + "/locked";
  write_file(path, "0123456789");
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDWR), 10);
      must(::flock(10, LOCK_EX) == 0, "flock");
      place(::open(path.c_str(), O_RDWR), 11);  // closing the first number ends POSIX locks
      struct flock range {};
      range.l_type = F_WRLCK;
      range.l_whence = SEEK_SET;
      range.l_start = 2;
      range.l_len = 3;
      must(::fcntl(10, F_SETLK, &range) == 0, "F_SETLK");
      range.l_start = 7;
      range.l_len = 0;
      must(::fcntl(11, F_OFD_SETLK, &range) == 0, "F_OFD_SETLK");
    }));
    CallProcess replica;
    const auto capture = DescriptorCapture::create();
    Captured captured = capture_group(*capture, {primary.pid()}, {replica.pid()});
    CHECK_EQUAL(file_of(captured.image, 10).locks.size(), 2u);
    PromoteInput input;
    input.image = &captured.image;
    input.exact = how == How::kHandOver;
    if (how != How::kRecreate) {
      input.handed = DescriptorCapture::take(captured.input, captured.image);
    } else {
      primary.kill();
    }
    ReplicaProcess* const processes[] = {&replica};
    const std::vector<QueuedLock> queued = install_descriptors(input, processes);
    input.handed.clear();
    if (how == How::kRecreate) {
      CHECK(queued.empty());
      CHECK(!can_lock(path, 3));
    } else {
      CHECK_EQUAL(queued.size(), 1u);  // the primary still has it
      CHECK(queued[0].fd == 10 && queued[0].lock.start == 2 && queued[0].lock.length == 3);
      primary.kill();
    }
    CHECK(!can_lock(path, 9));
    CHECK(can_lock(path, 6));
    const UniqueFd other = open_path(path, O_RDWR);
    CHECK_EQUAL(::flock(other.get(), LOCK_EX | LOCK_NB), -1);
  }
}

TEST(named_pipes_and_process_handles_are_restored) {
  const std::string path = scratch() + "/fifo";
  for (const How how : kEveryWay) {
    ::unlink(path.c_str());
    must(::mkfifo(path.c_str(), 0600) == 0, "mkfifo");
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDONLY | O_NONBLOCK), 10);
      place(::open(path.c_str(), O_WRONLY), 11);
      place(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)), 12);
      const pid_t child = ::fork();
      if (child == 0) ::_exit(0);
      place(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)), 13);
      must(::waitpid(child, nullptr, 0) == child, "waitpid");
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(::write(replica.descriptor(11).get(), "named", 5), 5);
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "named");
    CHECK(replica.info(12).find("Pid:\t" + std::to_string(replica.pid())) != std::string::npos);
    CHECK(replica.info(13).find("Pid:\t-1") != std::string::npos);
  }
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

TEST(a_file_that_changed_since_the_epoch_is_noticed) {
  const std::string path = scratch() + "/written";
  write_file(path, "before");
  CallProcess primary(clean([&] { place(::open(path.c_str(), O_RDWR), 5); }));
  const auto capture = DescriptorCapture::create();
  const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
  check_files_unchanged(captured.image);
  ::usleep(20'000);
  CHECK_EQUAL(::write(primary.descriptor(5).get(), "after", 5), 5);
  int error = 0;
  try {
    check_files_unchanged(captured.image);
  } catch (const SysError& changed) {
    error = changed.error();
    CHECK_EQUAL(*changed.object().path, path);
  }
  CHECK_EQUAL(error, ESTALE);
}

TEST(a_file_mapped_for_writing_is_noticed_too) {
  GroupImage image;
  const std::string path = scratch() + "/mapped";
  write_file(path, std::string(4096, 'm'));
  const UniqueFd file = open_path(path, O_RDWR);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  must(memory != MAP_FAILED, "mmap");
  const auto start = reinterpret_cast<uint64_t>(memory);
  Captured captured;
  captured.input.processes.push_back({.host_pid = ::getpid(), .group_pid = ::getpid()});
  MappingImage& mapping = image.processes.emplace_back().mappings.emplace_back();
  mapping.start = start;
  mapping.end = start + 4096;
  mapping.kind = MappingKind::kFileShared;
  mapping.prot = PROT_READ | PROT_WRITE;
  mapping.path = path;
  DescriptorCapture::create()->capture(captured.input, image);
  CHECK_EQUAL(image.mapped_files.size(), 1u);
  image.open_files.clear();
  if (image.mapped_files[0].times_tell) check_files_unchanged(image);
  ::usleep(20'000);
  static_cast<char*>(memory)[0] = 'n';
  bool noticed = false;
  try {
    check_files_unchanged(image);
  } catch (const SysError& error) {
    noticed = error.error() == ESTALE;
  }
  CHECK(noticed);
  ::munmap(memory, 4096);
}

TEST(sockets_of_the_other_family_are_restored) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([] {
      place(::socket(AF_INET6, SOCK_STREAM, 0), 10);
      set_option(10, IPPROTO_IPV6, IPV6_V6ONLY, 1);
      set_option(10, SOL_SOCKET, SO_REUSEADDR, 1);
      sockaddr_in6 address{};
      address.sin6_family = AF_INET6;
      address.sin6_addr = IN6ADDR_LOOPBACK_INIT;
      must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
      must(::listen(10, 5) == 0, "listen");
      socklen_t size = sizeof address;
      ::getsockname(10, reinterpret_cast<sockaddr*>(&address), &size);
      place(::socket(AF_INET6, SOCK_STREAM, 0), 11);
      must(::connect(11, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "connect");
      place(::accept(10, nullptr, nullptr), 12);
      place(::socket(AF_INET6, SOCK_STREAM, 0), 13);
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(option(replica.descriptor(10).get(), IPPROTO_IPV6, IPV6_V6ONLY), 1);
    CHECK_EQUAL(option(replica.descriptor(10).get(), SOL_SOCKET, SO_ACCEPTCONN), 1);
    if (how == How::kHandOver) {
      CHECK_EQUAL(::write(replica.descriptor(11).get(), "six", 3), 3);
      CHECK_EQUAL(read_some(replica.descriptor(12).get()), "six");
    } else {
      CHECK_EQUAL(read_some(replica.descriptor(11).get()), "error Connection reset by peer");
    }
    CHECK_EQUAL(option(replica.descriptor(13).get(), SOL_SOCKET, SO_DOMAIN), AF_INET6);
  }
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

TEST(sixty_connections_cost_little) {
  CallProcess primary(clean([] {
    place(::socket(AF_INET, SOCK_STREAM, 0), 10);
    sockaddr_in address = loopback(0);
    must(::bind(10, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
    must(::listen(10, 100) == 0, "listen");
    place(::epoll_create1(0), 11);
    const uint16_t port = port_of(10);
    for (int i = 0; i < 60; ++i) {
      // The clients are in the process too, but closed at once: what is left is established.
      UniqueFd client = connect_to(port);
      place(::accept(10, nullptr, nullptr), 20 + i);
      epoll_event event{};
      event.events = EPOLLIN;
      must(::epoll_ctl(11, EPOLL_CTL_ADD, 20 + i, &event) == 0, "epoll_ctl");
    }
  }));
  const auto capture = DescriptorCapture::create();
  Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
  uint64_t best_capture = UINT64_MAX;
  uint64_t best_take = UINT64_MAX;
  uint64_t best_install = UINT64_MAX;
  for (int i = 0; i < 60; ++i) {
    GroupImage image;
    image.processes.emplace_back().pid = primary.pid();
    DescriptorCaptureInput input = captured.input;
    input.refusals = nullptr;
    uint64_t started = now_ns();
    capture->capture(input, image);
    best_capture = std::min(best_capture, now_ns() - started);
    if (i % 10 != 0) continue;
    CallProcess replica;
    image.processes[0].pid = replica.pid();
    PromoteInput promote;
    promote.image = &image;
    promote.exact = true;
    started = now_ns();
    promote.handed = DescriptorCapture::take(captured.input, image);
    best_take = std::min(best_take, now_ns() - started);
    ReplicaProcess* const processes[] = {&replica};
    started = now_ns();
    (void)install_descriptors(promote, processes);
    best_install = std::min(best_install, now_ns() - started);
  }
  note("65 descriptors: capture " + std::to_string(best_capture / 1000) + " us, take " +
       std::to_string(best_take / 1000) + " us, install " + std::to_string(best_install / 1000) +
       " us");
  CHECK(best_capture < 2'000'000 && best_install < 3'000'000);
}

}  // namespace
}  // namespace replpage::testing
