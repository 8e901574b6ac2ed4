// The address at which a group's clients find it, wherever it runs: ADDRESS/PREFIX@INTERFACE.
#pragma once

#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

namespace replpage {

// Thrown for a text that is no service address, or names one that nobody can have.
class BadServiceAddress : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ServiceAddress {
  int family = AF_INET;  // or AF_INET6
  std::array<uint8_t, 16> bytes{};
  unsigned prefix = 0;  // bits
  std::string interface;

  // In the order of the network: 4 or 16 bytes.
  [[nodiscard]] std::span<const uint8_t> raw() const {
    return std::span(bytes).first(family == AF_INET ? 4 : 16);
  }
  [[nodiscard]] std::string host() const;  // 10.0.0.9
  // Whether a socket address (struct sockaddr) is at it, also as an IPv4-mapped one.
  [[nodiscard]] bool has(std::span<const uint8_t> socket_address) const;
  [[nodiscard]] std::string text() const;  // 10.0.0.9/24@eth0, always written in the same way

  bool operator==(const ServiceAddress&) const = default;
};

// Throws BadServiceAddress, which says what is wrong with it.
ServiceAddress parse_service_address(std::string_view text);

}  // namespace replpage
