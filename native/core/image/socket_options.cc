#include "core/image/socket_options.h"

#include <linux/in6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"

namespace replpage {
namespace {

enum class Layer : uint8_t { kAny, kInternet, kIp4, kIp6, kTcp, kUdp, kUnix };

struct OptionRule {
  int32_t level;
  int32_t name;
  Layer layer;
  OptionTime time;
  int32_t set_name;  // where setting has a name of its own, else `name`
};

constexpr int kIpUnicastIf = 50;        // IP_UNICAST_IF
constexpr int kBindAddressNoPort = 24;  // IP_BIND_ADDRESS_NO_PORT
constexpr OptionTime kEarly = OptionTime::kBeforeBind;
constexpr OptionTime kLate = OptionTime::kAfterBind;

constexpr OptionRule kRules[] = {
    {SOL_SOCKET, SO_REUSEADDR, Layer::kAny, kEarly, SO_REUSEADDR},
    {SOL_SOCKET, SO_REUSEPORT, Layer::kInternet, kEarly, SO_REUSEPORT},
    {SOL_SOCKET, SO_BINDTODEVICE, Layer::kInternet, kEarly, SO_BINDTODEVICE},
    {SOL_SOCKET, SO_MARK, Layer::kInternet, kEarly, SO_MARK},
    {SOL_SOCKET, SO_BROADCAST, Layer::kInternet, kEarly, SO_BROADCAST},
    // The kernel doubles what is set and tells the doubled value; FORCE is not held to the limits.
    {SOL_SOCKET, SO_RCVBUF, Layer::kAny, kEarly, SO_RCVBUFFORCE},
    {SOL_SOCKET, SO_SNDBUF, Layer::kAny, kLate, SO_SNDBUFFORCE},
    {SOL_SOCKET, SO_KEEPALIVE, Layer::kAny, kLate, SO_KEEPALIVE},
    {SOL_SOCKET, SO_OOBINLINE, Layer::kAny, kLate, SO_OOBINLINE},
    {SOL_SOCKET, SO_PRIORITY, Layer::kAny, kLate, SO_PRIORITY},
    {SOL_SOCKET, SO_RCVLOWAT, Layer::kAny, kLate, SO_RCVLOWAT},
    {SOL_SOCKET, SO_LINGER, Layer::kAny, kLate, SO_LINGER},
    {SOL_SOCKET, SO_RCVTIMEO, Layer::kAny, kLate, SO_RCVTIMEO},
    {SOL_SOCKET, SO_SNDTIMEO, Layer::kAny, kLate, SO_SNDTIMEO},
    {SOL_SOCKET, SO_TIMESTAMP, Layer::kAny, kLate, SO_TIMESTAMP},
    {SOL_SOCKET, SO_TIMESTAMPNS, Layer::kAny, kLate, SO_TIMESTAMPNS},
    {SOL_SOCKET, SO_DONTROUTE, Layer::kInternet, kLate, SO_DONTROUTE},
    {SOL_SOCKET, SO_ZEROCOPY, Layer::kInternet, kLate, SO_ZEROCOPY},
    {SOL_SOCKET, SO_BUSY_POLL, Layer::kInternet, kLate, SO_BUSY_POLL},
    {SOL_SOCKET, SO_RXQ_OVFL, Layer::kAny, kLate, SO_RXQ_OVFL},
    {SOL_SOCKET, SO_PASSCRED, Layer::kUnix, kLate, SO_PASSCRED},
    {IPPROTO_IPV6, IPV6_V6ONLY, Layer::kIp6, kEarly, IPV6_V6ONLY},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, Layer::kIp6, kEarly, IPV6_TRANSPARENT},
    {IPPROTO_IPV6, IPV6_FREEBIND, Layer::kIp6, kEarly, IPV6_FREEBIND},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, Layer::kIp6, kLate, IPV6_RECVPKTINFO},
    {IPPROTO_IPV6, IPV6_RECVERR, Layer::kIp6, kLate, IPV6_RECVERR},
    {IPPROTO_IPV6, IPV6_TCLASS, Layer::kIp6, kLate, IPV6_TCLASS},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, Layer::kIp6, kLate, IPV6_UNICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, Layer::kIp6, kLate, IPV6_MULTICAST_HOPS},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, Layer::kIp6, kLate, IPV6_MULTICAST_LOOP},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, Layer::kIp6, kLate, IPV6_MTU_DISCOVER},
    {IPPROTO_IP, IP_TRANSPARENT, Layer::kIp4, kEarly, IP_TRANSPARENT},
    {IPPROTO_IP, IP_FREEBIND, Layer::kIp4, kEarly, IP_FREEBIND},
    {IPPROTO_IP, kBindAddressNoPort, Layer::kIp4, kEarly, kBindAddressNoPort},
    {IPPROTO_IP, IP_PKTINFO, Layer::kIp4, kLate, IP_PKTINFO},
    {IPPROTO_IP, IP_RECVERR, Layer::kIp4, kLate, IP_RECVERR},
    {IPPROTO_IP, IP_RECVTTL, Layer::kIp4, kLate, IP_RECVTTL},
    {IPPROTO_IP, IP_RECVTOS, Layer::kIp4, kLate, IP_RECVTOS},
    {IPPROTO_IP, IP_TOS, Layer::kInternet, kLate, IP_TOS},
    {IPPROTO_IP, IP_TTL, Layer::kInternet, kLate, IP_TTL},
    {IPPROTO_IP, IP_MTU_DISCOVER, Layer::kInternet, kLate, IP_MTU_DISCOVER},
    {IPPROTO_IP, IP_MULTICAST_TTL, Layer::kIp4, kLate, IP_MULTICAST_TTL},
    {IPPROTO_IP, IP_MULTICAST_LOOP, Layer::kIp4, kLate, IP_MULTICAST_LOOP},
    {IPPROTO_IP, kIpUnicastIf, Layer::kIp4, kLate, kIpUnicastIf},
    {IPPROTO_TCP, TCP_NODELAY, Layer::kTcp, kLate, TCP_NODELAY},
    {IPPROTO_TCP, TCP_CORK, Layer::kTcp, kLate, TCP_CORK},
    {IPPROTO_TCP, TCP_KEEPIDLE, Layer::kTcp, kLate, TCP_KEEPIDLE},
    {IPPROTO_TCP, TCP_KEEPINTVL, Layer::kTcp, kLate, TCP_KEEPINTVL},
    {IPPROTO_TCP, TCP_KEEPCNT, Layer::kTcp, kLate, TCP_KEEPCNT},
    {IPPROTO_TCP, TCP_SYNCNT, Layer::kTcp, kLate, TCP_SYNCNT},
    {IPPROTO_TCP, TCP_LINGER2, Layer::kTcp, kLate, TCP_LINGER2},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, Layer::kTcp, kLate, TCP_DEFER_ACCEPT},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, Layer::kTcp, kLate, TCP_USER_TIMEOUT},
    {IPPROTO_TCP, TCP_FASTOPEN, Layer::kTcp, kLate, TCP_FASTOPEN},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, Layer::kTcp, kLate, TCP_NOTSENT_LOWAT},
    {IPPROTO_TCP, TCP_CONGESTION, Layer::kTcp, kLate, TCP_CONGESTION},
    {IPPROTO_UDP, UDP_CORK, Layer::kUdp, kLate, UDP_CORK},
    {IPPROTO_UDP, UDP_SEGMENT, Layer::kUdp, kLate, UDP_SEGMENT},
    {IPPROTO_UDP, UDP_GRO, Layer::kUdp, kLate, UDP_GRO},
};

bool applies(Layer layer, const SocketState& state) {
  const bool internet = state.domain == AF_INET || state.domain == AF_INET6;
  switch (layer) {
    case Layer::kAny:
      return true;
    case Layer::kInternet:
      return internet;
    case Layer::kIp4:
      return state.domain == AF_INET;
    case Layer::kIp6:
      return state.domain == AF_INET6;
    case Layer::kTcp:
      return internet && state.type == SOCK_STREAM;
    case Layer::kUdp:
      return internet && state.type == SOCK_DGRAM;
    case Layer::kUnix:
      return state.domain == AF_UNIX;
  }
  return false;
}

// nullopt: this socket or kernel has no such option.
std::optional<Bytes> read_option(int socket, const OptionRule& rule) {
  Bytes value(64);
  auto size = static_cast<socklen_t>(value.size());
  if (::getsockopt(socket, rule.level, rule.name, value.data(), &size) != 0) return std::nullopt;
  value.resize(size);
  return value;
}

using Values = std::vector<std::optional<Bytes>>;

Values read_all(int socket, const SocketState& state) {
  Values values(std::size(kRules));
  for (size_t i = 0; i < std::size(kRules); ++i) {
    if (applies(kRules[i].layer, state)) values[i] = read_option(socket, kRules[i]);
  }
  return values;
}

// Values of a new socket. Buffer sizes of a listening TCP socket start out the same.
const Values& defaults(const SocketState& state) {
  static thread_local std::map<std::tuple<int, int, int>, Values> known;
  const auto [at, added] = known.try_emplace({state.domain, state.type, state.protocol});
  if (added) {
    const UniqueFd fresh(::socket(state.domain, state.type | SOCK_CLOEXEC, state.protocol));
    if (!fresh.valid()) {
      known.erase(at);
      throw SysError::from_errno("socket of domain " + std::to_string(state.domain));
    }
    at->second = read_all(fresh.get(), state);
  }
  return at->second;
}

const OptionRule* rule_of(const SocketOption& option) {
  const auto* found = std::find_if(std::begin(kRules), std::end(kRules), [&](const OptionRule& r) {
    return r.level == option.level && r.name == option.name;
  });
  return found == std::end(kRules) ? nullptr : found;
}

bool is_buffer_size(const OptionRule& rule) {
  return rule.level == SOL_SOCKET && (rule.name == SO_RCVBUF || rule.name == SO_SNDBUF);
}

}  // namespace

std::vector<SocketOption> read_socket_options(int socket, const SocketState& state) {
  const Values& fresh = defaults(state);
  std::vector<SocketOption> options;
  for (size_t i = 0; i < std::size(kRules); ++i) {
    if (!applies(kRules[i].layer, state)) continue;
    auto value = read_option(socket, kRules[i]);
    if (!value || value == fresh[i]) continue;
    options.push_back({kRules[i].level, kRules[i].name, std::move(*value)});
  }
  return options;
}

void set_socket_options(int socket, const std::vector<SocketOption>& options, OptionTime time) {
  for (const SocketOption& option : options) {
    const OptionRule* rule = rule_of(option);
    if (rule == nullptr) throw FormatError("image has an unknown socket option");
    if (rule->time != time) continue;
    Bytes value = option.value;
    if (is_buffer_size(*rule) && value.size() == sizeof(int)) {
      int bytes = 0;
      std::memcpy(&bytes, value.data(), sizeof bytes);
      bytes /= 2;
      std::memcpy(value.data(), &bytes, sizeof bytes);
    }
    if (::setsockopt(socket, rule->level, rule->set_name, value.data(),
                     static_cast<socklen_t>(value.size())) != 0) {
      throw SysError::from_errno("setsockopt level " + std::to_string(rule->level) + " option " +
                                 std::to_string(rule->name));
    }
  }
}

}  // namespace replpage
