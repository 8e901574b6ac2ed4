#include "keeper/holder_link.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr int kStartTimeoutMs = 8000;
constexpr int kAnswerTimeoutMs = 1000;

bool readable(int fd, int timeout_ms) {
  pollfd item{.fd = fd, .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    ready = ::poll(&item, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0 && (item.revents & POLLIN) != 0;
}

}  // namespace

void report_start(int link, const std::string& failure) {
  (void)::send(link, failure.c_str(), std::min(failure.size() + 1, kOutcomeBytesMax), MSG_NOSIGNAL);
}

// CAP_SYS_ADMIN may name any process in its credentials; the kernel looks the pid up in the
// sender's namespace and shows the receiver the one in its own.
pid_t host_pid_of(int link, pid_t pid) {
  ucred who{.pid = pid, .uid = ::getuid(), .gid = ::getgid()};
  char byte = 'p';
  iovec part{&byte, 1};
  alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof who)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_CREDENTIALS;
  c->cmsg_len = CMSG_LEN(sizeof who);
  std::memcpy(CMSG_DATA(c), &who, sizeof who);
  if (::sendmsg(link, &message, MSG_NOSIGNAL) < 0) return 0;
  int32_t answer = 0;
  if (!readable(link, kAnswerTimeoutMs)) return 0;
  return ::recv(link, &answer, sizeof answer, 0) == sizeof answer ? answer : 0;
}

void expect_credentials(int link) {
  const int on = 1;
  if (::setsockopt(link, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) != 0) {
    throw SysError::from_errno("set SO_PASSCRED");
  }
}

bool wait_start(int link, int keeper_pidfd, std::string& failure) {
  pollfd items[2] = {{.fd = link, .events = POLLIN, .revents = 0},
                     {.fd = keeper_pidfd, .events = POLLIN, .revents = 0}};
  int ready = 0;
  do {
    ready = ::poll(items, 2, kStartTimeoutMs);
  } while (ready < 0 && errno == EINTR);
  std::vector<char> text(kOutcomeBytesMax);
  if (::recv(link, text.data(), text.size(), MSG_DONTWAIT) <= 0) return false;
  text.back() = 0;
  failure = text.data();
  return true;
}

bool answer_host_pid(int link) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof(ucred))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (::recvmsg(link, &message, MSG_CMSG_CLOEXEC) <= 0) return false;
  const cmsghdr* c = CMSG_FIRSTHDR(&message);
  int32_t answer = 0;
  if (c != nullptr && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
    ucred who{};
    std::memcpy(&who, CMSG_DATA(c), sizeof who);
    answer = who.pid;
  }
  return ::send(link, &answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer;
}

}  // namespace replpage
