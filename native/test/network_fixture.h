// Network namespaces of a test's own, joined by veth pairs and a bridge: they go with its process.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "core/base/procfs.h"
#include "core/base/unique_fd.h"
#include "test/test.h"

namespace replpage::testing {

// A network namespace, kept by its descriptor. The thread is in it while work of in() runs.
class NetworkSpace {
 public:
  // A new one, for the calling thread too, which stays in it.
  NetworkSpace() {
    if (::unshare(CLONE_NEWNET) != 0) SKIP("network namespaces need CAP_SYS_ADMIN");
    fd_ = open_path("/proc/thread-self/ns/net", O_RDONLY);
  }

  template <class Work>
  auto in(Work work) const {
    const UniqueFd before = open_path("/proc/thread-self/ns/net", O_RDONLY);
    CHECK(::setns(fd_.get(), CLONE_NEWNET) == 0);
    struct Return {
      int to;
      ~Return() { ::setns(to, CLONE_NEWNET); }
    } const back{before.get()};
    return work();
  }

  // `ip ARGUMENTS` in it; false: it failed.
  [[nodiscard]] bool ip(const std::string& arguments) const {
    return in([&] { return std::system(("ip " + arguments).c_str()) == 0; });
  }

  // What `ip ARGUMENTS` prints.
  [[nodiscard]] std::string told_by_ip(const std::string& arguments) const {
    return in([&] {
      std::string text;
      FILE* pipe = ::popen(("ip " + arguments).c_str(), "r");
      CHECK(pipe != nullptr);
      char line[512];
      while (std::fgets(line, sizeof line, pipe) != nullptr) text += line;
      ::pclose(pipe);
      return text;
    });
  }

  // For ip(8).
  [[nodiscard]] std::string path() const {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
  }

 private:
  UniqueFd fd_;
};

// A host with one interface, eth0, on the bridge of `hub`; `number` is the last part of its own
// addresses 10.9.0.N/24 and fd09::N/64, and of its hardware address.
class TestHost : public NetworkSpace {
 public:
  TestHost(const NetworkSpace& hub, int number)
      : mac_("02:00:00:00:09:0" + std::to_string(number)) {
    const std::string port = "port" + std::to_string(number);
    const std::string n = std::to_string(number);
    CHECK(hub.ip("link add " + port + " type veth peer name eth0 address " + mac_ + " netns " +
                 path()));
    CHECK(hub.ip("link set " + port + " master br0 up"));
    CHECK(ip("link set lo up"));
    CHECK(ip("link set eth0 up"));
    CHECK(ip("addr add 10.9.0." + n + "/24 dev eth0"));
    CHECK(ip("addr add fd09::" + n + "/64 dev eth0 nodad"));
  }

  [[nodiscard]] const std::string& mac() const { return mac_; }

 private:
  std::string mac_;
};

// A bridge in a namespace of its own. Skips the test where there can be none.
class TestHub : public NetworkSpace {
 public:
  TestHub() {
    if (std::system("ip link add br0 type bridge forward_delay 0 2>/dev/null") != 0) {
      SKIP("no bridge in a network namespace here, or no ip(8)");
    }
    CHECK(ip("link set br0 up"));
  }
};

struct SocketAddress {
  SocketAddress(const std::string& host, uint16_t port) {
    const bool is_v6 = host.find(':') != std::string::npos;
    storage.ss_family = is_v6 ? AF_INET6 : AF_INET;
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    (is_v6 ? v6.sin6_port : v4.sin_port) = htons(port);
    void* raw = is_v6 ? static_cast<void*>(&v6.sin6_addr) : static_cast<void*>(&v4.sin_addr);
    CHECK(::inet_pton(storage.ss_family, host.c_str(), raw) == 1);
    size = is_v6 ? sizeof v6 : sizeof v4;
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr_storage storage{};
  socklen_t size = 0;
};

inline UniqueFd listen_at(const NetworkSpace& space, const SocketAddress& address) {
  return space.in([&] {
    UniqueFd made(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(made.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    CHECK(::bind(made.get(), address.get(), address.size) == 0);
    CHECK(::listen(made.get(), 16) == 0);
    return made;
  });
}

// Sent, and not waited for.
inline UniqueFd connect_from(const NetworkSpace& space, const SocketAddress& address) {
  return space.in([&] {
    UniqueFd made(
        ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int outcome = ::connect(made.get(), address.get(), address.size);
    CHECK(outcome == 0 || errno == EINPROGRESS);
    return made;
  });
}

}  // namespace replpage::testing
