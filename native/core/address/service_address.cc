#include "core/address/service_address.h"

#include <arpa/inet.h>
#include <net/if.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace replpage {
namespace {

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw BadServiceAddress(std::string(text) + ": " + why);
}

bool is_interface_name(std::string_view name) {
  // As the kernel's dev_valid_name() has it.
  return !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(),
                      [](char c) { return c == '/' || c == ':' || c <= ' ' || c == '\x7f'; });
}

// The bits behind the prefix are all `bit`.
bool rest_is(const ServiceAddress& address, bool bit) {
  const auto raw = address.raw();
  for (size_t at = address.prefix; at < raw.size() * 8; ++at) {
    if (((raw[at / 8] >> (7 - at % 8)) & 1) != (bit ? 1 : 0)) return false;
  }
  return true;
}

// Why no host can have it; empty: one can.
std::string why_not_v4(const ServiceAddress& address) {
  const uint8_t first = address.bytes[0];
  if (first == 0 || first >= 240) return "it is reserved";
  if (first == 127) return "it is a loopback address, which nobody else can reach";
  if (first >= 224) return "it is a multicast address";
  if (address.prefix < 31 && rest_is(address, false)) return "it is the network's own address";
  if (address.prefix < 31 && rest_is(address, true)) return "it is the network's broadcast address";
  return {};
}

std::string why_not_v6(const ServiceAddress& address) {
  in6_addr raw{};
  std::memcpy(&raw, address.bytes.data(), sizeof raw);
  if (IN6_IS_ADDR_UNSPECIFIED(&raw)) return "it is reserved";
  if (IN6_IS_ADDR_LOOPBACK(&raw)) return "it is a loopback address, which nobody else can reach";
  if (IN6_IS_ADDR_MULTICAST(&raw)) return "it is a multicast address";
  if (IN6_IS_ADDR_LINKLOCAL(&raw)) return "a link-local address cannot move";
  if (IN6_IS_ADDR_V4MAPPED(&raw)) return "write an IPv4 address as such";
  if (address.prefix < 127 && rest_is(address, false)) return "it is the routers' own address";
  return {};
}

}  // namespace

std::string ServiceAddress::host() const {
  char text[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family, bytes.data(), text, sizeof text);
  return text;
}

bool ServiceAddress::has(std::span<const uint8_t> socket_address) const {
  sockaddr_storage there{};
  std::memcpy(&there, socket_address.data(), std::min(socket_address.size(), sizeof there));
  if (there.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(there);
    return family == AF_INET && std::memcmp(&v4.sin_addr, bytes.data(), 4) == 0;
  }
  if (there.ss_family != AF_INET6) return false;
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(there).sin6_addr;
  if (family == AF_INET6) return std::memcmp(&v6, bytes.data(), 16) == 0;
  return IN6_IS_ADDR_V4MAPPED(&v6) && std::memcmp(v6.s6_addr + 12, bytes.data(), 4) == 0;
}

std::string ServiceAddress::text() const {
  return host() + "/" + std::to_string(prefix) + "@" + interface;
}

ServiceAddress parse_service_address(std::string_view text) {
  const size_t slash = text.find('/');
  const size_t at = slash == std::string_view::npos ? slash : text.find('@', slash);
  if (at == std::string_view::npos) refuse(text, "it is not of the form ADDRESS/PREFIX@INTERFACE");
  ServiceAddress address;
  const std::string host(text.substr(0, slash));
  address.family = host.find(':') == std::string::npos ? AF_INET : AF_INET6;
  if (::inet_pton(address.family, host.c_str(), address.bytes.data()) != 1) {
    refuse(text, "there is no IP address before the slash");
  }
  const std::string_view bits = text.substr(slash + 1, at - slash - 1);
  const auto parsed = std::from_chars(bits.data(), bits.data() + bits.size(), address.prefix);
  const unsigned most = address.family == AF_INET ? 32 : 128;
  if (parsed.ec != std::errc() || parsed.ptr != bits.data() + bits.size() || address.prefix < 1 ||
      address.prefix > most) {
    refuse(text, "the prefix is no number from 1 to " + std::to_string(most));
  }
  address.interface = text.substr(at + 1);
  if (!is_interface_name(address.interface)) refuse(text, "no interface can have such a name");
  const std::string why = address.family == AF_INET ? why_not_v4(address) : why_not_v6(address);
  if (!why.empty()) refuse(text, why);
  return address;
}

}  // namespace replpage
