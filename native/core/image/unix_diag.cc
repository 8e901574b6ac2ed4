#include "core/image/unix_diag.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

struct Request {
  nlmsghdr header{};
  unix_diag_req body{};
};

// The thread is in another network namespace while this lives.
class VisitedNetwork {
 public:
  explicit VisitedNetwork(const std::string& path)
      : home_(open_path("/proc/thread-self/ns/net", O_RDONLY)) {
    const UniqueFd there = open_path(path, O_RDONLY);
    if (::setns(there.get(), CLONE_NEWNET) != 0) {
      throw SysError::from_errno("enter network namespace", on_path(path));
    }
  }
  ~VisitedNetwork() { ::setns(home_.get(), CLONE_NEWNET); }
  VisitedNetwork(const VisitedNetwork&) = delete;
  VisitedNetwork& operator=(const VisitedNetwork&) = delete;

 private:
  UniqueFd home_;
};

UniqueFd diag_socket() {
  UniqueFd socket(::socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!socket.valid()) throw SysError::from_errno("open sock_diag");
  return socket;
}

UnixSocketFacts read_facts(const nlmsghdr& header) {
  UnixSocketFacts facts;
  const auto* message = static_cast<const unix_diag_msg*>(NLMSG_DATA(&header));
  auto left = static_cast<int>(header.nlmsg_len - NLMSG_LENGTH(sizeof *message));
  const auto* attribute = reinterpret_cast<const rtattr*>(message + 1);
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
    const void* data = RTA_DATA(attribute);
    if (attribute->rta_type == UNIX_DIAG_PEER) {
      facts.peer.emplace();
      std::memcpy(&*facts.peer, data, sizeof(uint32_t));
    } else if (attribute->rta_type == UNIX_DIAG_RQLEN) {
      unix_diag_rqlen lengths{};
      std::memcpy(&lengths, data, sizeof lengths);
      facts.receive_queue = lengths.udiag_rqueue;
      facts.backlog = lengths.udiag_wqueue;
    } else if (attribute->rta_type == UNIX_DIAG_SHUTDOWN) {
      const uint8_t mask = *static_cast<const uint8_t*>(data);
      facts.shut_read = (mask & 1) != 0;   // RCV_SHUTDOWN
      facts.shut_write = (mask & 2) != 0;  // SEND_SHUTDOWN
    }
  }
  return facts;
}

}  // namespace

UnixDiag::UnixDiag(pid_t host_pid) {
  const std::string path = "/proc/" + std::to_string(host_pid) + "/ns/net";
  if (read_link(path) == read_link("/proc/thread-self/ns/net")) {
    netlink_ = diag_socket();
  } else {
    const VisitedNetwork visit(path);
    netlink_ = diag_socket();
  }
}

std::optional<UnixSocketFacts> UnixDiag::find(uint32_t inode) {
  Request request;
  request.header = {.nlmsg_len = sizeof request,
                    .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                    .nlmsg_flags = NLM_F_REQUEST,
                    .nlmsg_seq = ++sequence_,
                    .nlmsg_pid = 0};
  request.body.sdiag_family = AF_UNIX;
  request.body.udiag_states = UINT32_MAX;
  request.body.udiag_ino = inode;
  request.body.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN;
  std::memset(request.body.udiag_cookie, 0xff, sizeof request.body.udiag_cookie);
  if (::send(netlink_.get(), &request, sizeof request, 0) < 0) {
    throw SysError::from_errno("ask sock_diag");
  }
  alignas(nlmsghdr) std::array<char, 4096> answer{};
  for (;;) {
    const ssize_t size = ::recv(netlink_.get(), answer.data(), answer.size(), 0);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw SysError::from_errno("read sock_diag");
    const auto* header = reinterpret_cast<const nlmsghdr*>(answer.data());
    if (static_cast<size_t>(size) < sizeof *header || header->nlmsg_seq != sequence_) continue;
    if (header->nlmsg_type != NLMSG_ERROR) return read_facts(*header);
    const auto* error = static_cast<const nlmsgerr*>(NLMSG_DATA(header));
    if (error->error == -ENOENT) return std::nullopt;
    throw SysError("sock_diag of a UNIX socket", -error->error);
  }
}

}  // namespace replpage
