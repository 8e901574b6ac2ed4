#include "test/test_keeper.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/replica.h"

namespace replpage::testing {
namespace {

enum CallKind : uint8_t { kApply = 1, kPromote = 2, kFreeMoved = 3, kMaps = 4 };

struct Call {
  uint8_t kind = 0;
  GroupImage image;
  std::vector<PageRun> runs;
  std::vector<LazyRange> lazy;
  Bytes pages;  // travels on its own: it may be longer than a list
  template <class A>
  void visit(A& a) {
    a(kind, image, runs, lazy);
  }
};

void write_all(int fd, const Bytes& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t put = ::send(fd, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (put <= 0) throw SysError::from_errno("talk to the test keeper");
    at += static_cast<size_t>(put);
  }
}

void read_all(int fd, uint8_t* to, size_t size) {
  for (size_t at = 0; at < size;) {
    const ssize_t got = ::read(fd, to + at, size - at);
    if (got <= 0) throw SysError("talk to the test keeper", got == 0 ? EPIPE : errno);
    at += static_cast<size_t>(got);
  }
}

void send_bytes(int fd, const Bytes& body) {
  const uint64_t size = body.size();
  Bytes head(sizeof size);
  std::memcpy(head.data(), &size, sizeof size);
  write_all(fd, head);
  write_all(fd, body);
}

Bytes receive_bytes(int fd) {
  uint64_t size = 0;
  read_all(fd, reinterpret_cast<uint8_t*>(&size), sizeof size);
  Bytes body(size);
  read_all(fd, body.data(), size);
  return body;
}

class VectorPages : public StagedPages {
 public:
  explicit VectorPages(const Bytes& bytes) : bytes_(bytes) {}
  std::span<const uint8_t> data(uint64_t offset, uint64_t length) override {
    if (offset > bytes_.size() || length > bytes_.size() - offset) {
      throw FormatError("staged bytes out of range");
    }
    return {bytes_.data() + offset, length};
  }

 private:
  const Bytes& bytes_;
};

// Serves missing pages of one process, one page a fault.
void serve(const Uffd& uffd, int source, std::atomic<uint64_t>& served) {
  std::array<uint8_t, kPageSize> page{};
  for (;;) {
    pollfd poll_fd{uffd.fd(), POLLIN, 0};
    if (::poll(&poll_fd, 1, -1) < 0 || (poll_fd.revents & (POLLERR | POLLHUP)) != 0) return;
    uffd_msg message{};
    if (uffd.read({&message, 1}) != 1 || message.event != UFFD_EVENT_PAGEFAULT) continue;
    const uint64_t address = page_floor(message.arg.pagefault.address);
    if (::pread(source, page.data(), page.size(), static_cast<off_t>(address)) !=
        static_cast<ssize_t>(page.size())) {
      page.fill(0xEE);
    }
    (void)uffd.copy(address, page);
    ++served;
  }
}

class Keeper {
 public:
  Keeper(int socket, const std::map<int32_t, int>& sources, UniqueFd proc)
      : socket_(socket), sources_(sources) {
    replica_->see_primary(std::move(proc));
  }

  [[noreturn]] void run() {
    for (;;) {
      KeeperAnswer answer;
      try {
        auto call = decode<Call>(receive_bytes(socket_));
        call.pages = receive_bytes(socket_);
        handle(call, answer);
      } catch (const SysError& error) {
        if (error.error() == EPIPE) ::_exit(0);
        answer.error = error.what();
      } catch (const std::exception& error) {
        answer.error = error.what();
      }
      answer.served_pages = served_;
      send_bytes(socket_, encode(answer));
    }
  }

 private:
  void handle(Call& call, KeeperAnswer& answer) {
    if (call.kind == kApply) {
      replica_->shape(call.image);
      VectorPages pages(call.pages);
      replica_->write(call.runs, pages);
      answer.resident_bytes = replica_->resident_bytes();
    } else if (call.kind == kPromote) {
      promote(call, answer);
    } else if (call.kind == kMaps) {
      const auto pid = std::to_string(call.lazy.at(0).pid);
      answer.text = read_proc("/proc/" + pid + "/maps").value_or("");
    } else {
      do {
        answer.resident_bytes += replica_->free_moved(false);
      } while (replica_->free_again_us() != 0 && replica_->free_again_us() <= now_us());
    }
  }

  void promote(Call& call, KeeperAnswer& answer) {
    PromoteInput input;
    input.image = &call.image;
    input.lazy = call.lazy;
    input.exact = true;
    const auto start = [this](PromotedReplica& promoted) {
      for (LazyProcess& lazy : promoted.lazy) {
        std::thread([this, uffd = std::move(lazy.uffd), pid = lazy.pid] {
          serve(uffd, sources_.at(pid), served_);
        }).detach();
      }
    };
    answer.took_us = replica_->promote(std::move(input), start).took_us;
  }

  int socket_;
  std::map<int32_t, int> sources_;
  std::unique_ptr<Replica> replica_ = Replica::create();
  std::atomic<uint64_t> served_ = 0;
};

[[noreturn]] void become_keeper(int socket, const std::map<int32_t, int>& sources) {
  UniqueFd proc(::open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 ||
      ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
      ::mount("proc", "/proc", "proc", 0, nullptr) != 0) {
    ::_exit(3);
  }
  Keeper(socket, sources, std::move(proc)).run();
}

}  // namespace

std::span<uint8_t> MemoryStaging::reserve(uint64_t bytes) {
  pages.resize(kept_ + bytes);
  return std::span(pages).subspan(kept_);
}

uint64_t MemoryStaging::keep(uint64_t used) {
  const uint64_t offset = kept_;
  kept_ += used;
  return offset;
}

TestKeeper::TestKeeper(const std::map<int32_t, int>& sources) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    throw SysError::from_errno("socketpair");
  }
  socket_ = UniqueFd(ends[0]);
  const UniqueFd other(ends[1]);
  pid_ = ::fork();
  if (pid_ == 0) {
    // Dies with the test, and takes the namespace along.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(ends[0]);
    if (::unshare(CLONE_NEWPID | CLONE_NEWNS) != 0) ::_exit(2);
    const pid_t keeper = ::fork();
    if (keeper == 0) become_keeper(ends[1], sources);
    ::close(ends[1]);
    ::waitpid(keeper, nullptr, 0);
    ::_exit(0);
  }
}

TestKeeper::~TestKeeper() {
  socket_.reset();
  ::waitpid(pid_, nullptr, 0);
}

KeeperAnswer TestKeeper::call(uint8_t kind, GroupImage* image, MemoryStaging* staging,
                              const std::vector<LazyRange>& lazy) {
  Call call;
  call.kind = kind;
  if (image != nullptr) call.image = *image;
  if (staging != nullptr) {
    call.runs = staging->runs;
    call.pages = staging->pages;
  }
  call.lazy = lazy;
  send_bytes(socket_.get(), encode(call));
  send_bytes(socket_.get(), call.pages);
  auto answer = decode<KeeperAnswer>(receive_bytes(socket_.get()));
  if (!answer.error.empty()) throw std::runtime_error("keeper: " + answer.error);
  return answer;
}

KeeperAnswer TestKeeper::apply(GroupImage& image, MemoryStaging& staging) {
  return call(kApply, &image, &staging, {});
}

KeeperAnswer TestKeeper::promote(GroupImage& image, const std::vector<LazyRange>& lazy) {
  return call(kPromote, &image, nullptr, lazy);
}

KeeperAnswer TestKeeper::free_moved() { return call(kFreeMoved, nullptr, nullptr, {}); }

std::string TestKeeper::maps(int32_t pid) {
  return call(kMaps, nullptr, nullptr, {{pid, 0, 0}}).text;
}

}  // namespace replpage::testing
