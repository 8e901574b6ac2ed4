// Service addresses: texts, frames, and what is on an interface.
#include <linux/if_addr.h>

#include "core/address/announcement.h"
#include "core/address/interface_address.h"
#include "core/address/service_address.h"
#include "core/base/sys_error.h"
#include "test/network_fixture.h"

namespace replpage {
namespace {

using namespace testing;

std::string why_bad(const std::string& text) {
  try {
    return "good: " + parse_service_address(text).text();
  } catch (const BadServiceAddress& error) {
    return error.what();
  }
}

int error_of(const std::function<void()>& work) {
  try {
    work();
    return 0;
  } catch (const SysError& error) {
    note(error.what());
    return error.error();
  }
}

TEST(address_texts_are_parsed_and_checked) {
  const ServiceAddress v4 = parse_service_address("10.0.0.9/24@eth0");
  CHECK_EQUAL(v4.family, AF_INET);
  CHECK_EQUAL(v4.prefix, 24u);
  CHECK_EQUAL(v4.interface, "eth0");
  CHECK_EQUAL(v4.text(), "10.0.0.9/24@eth0");
  CHECK_EQUAL(parse_service_address("FD00:0::9/64@bond0.17").text(), "fd00::9/64@bond0.17");
  CHECK_EQUAL(parse_service_address("10.0.0.0/31@e").prefix, 31u);
  for (const char* bad : {"",
                          "10.0.0.9",
                          "10.0.0.9/24",
                          "10.0.0.9@eth0",
                          "10.0.0.9/24@",
                          "10.0.0.9/0@eth0",
                          "10.0.0.9/33@eth0",
                          "10.0.0.9/ 24@eth0",
                          "10.0.0.9/24x@eth0",
                          "10.0.0/24@eth0",
                          "010.0.0.9x/24@eth0",
                          "fd00::9/129@eth0",
                          "10.0.0.9/24@a/b",
                          "10.0.0.9/24@..",
                          "10.0.0.9/24@abcdefghijklmnop",
                          "10.0.0.9/24@a b",
                          "127.0.0.1/8@lo",
                          "0.0.0.0/8@eth0",
                          "224.0.0.9/24@eth0",
                          "255.255.255.255/32@eth0",
                          "10.0.0.0/24@eth0",
                          "10.0.0.255/24@eth0",
                          "::/64@eth0",
                          "::1/128@lo",
                          "ff02::1/64@eth0",
                          "fe80::1/64@eth0",
                          "::ffff:10.0.0.9/96@eth0",
                          "fd00::/64@eth0"}) {
    const std::string why = why_bad(bad);
    CHECK(!why.starts_with("good"));
    CHECK(why.starts_with(std::string(bad) + ": "));
  }
}

TEST(address_announcements_are_whole_frames) {
  const EthernetAddress mac{2, 0, 0, 0, 9, 1};
  const auto arp = announcement_frames(parse_service_address("10.0.0.9/24@eth0"), mac);
  CHECK_EQUAL(arp.size(), 2u);
  const Bytes request{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,  0, 0, 0, 9, 1,  // Ethernet
                      8,    6,    0,    1,    8,    0,    6,  4, 0, 1,        // ARP, request
                      2,    0,    0,    0,    9,    1,    10, 0, 0, 9,        // sender
                      0,    0,    0,    0,    0,    0,    10, 0, 0, 9};       // target
  CHECK(arp[0] == request);
  Bytes reply = request;
  reply[21] = 2;
  std::copy(mac.begin(), mac.end(), reply.begin() + 32);
  CHECK(arp[1] == reply);

  const auto nd = announcement_frames(parse_service_address("fd00::9/64@eth0"), mac);
  CHECK_EQUAL(nd.size(), 1u);
  CHECK_EQUAL(nd[0].size(), 14u + 40u + 32u);
  CHECK_EQUAL(int{nd[0][21]}, 255);         // hop limit
  CHECK_EQUAL(int{nd[0][54]}, 136);         // neighbour advertisement
  CHECK_EQUAL(int{nd[0][58]}, 0x20);        // override, and neither a router nor asked for
  CHECK_EQUAL(int{nd[0][54 + 24]}, 2);      // target link-layer address
  CHECK_EQUAL(int{nd[0][54 + 24 + 7]}, 1);  // its last byte
}

TEST(address_is_taken_and_given_up) {
  const TestHub hub;
  const TestHost host(hub, 1);
  host.in([&] {
    for (const char* text : {"10.9.0.9/24@eth0", "fd09::9/64@eth0", "192.0.2.9/32@eth0"}) {
      const ServiceAddress address = parse_service_address(text);
      CHECK(!find_address(address));
      CHECK(!give_up_address(address));
      CHECK(take_address(address));
      const auto found = find_address(address);
      CHECK(found && found->ours);
      CHECK_EQUAL(found->where, address.host() + "/" + std::to_string(address.prefix) + " on eth0");
      CHECK(!take_address(address));
      CHECK(give_up_address(address));
      CHECK(!give_up_address(address));
      CHECK(!find_address(address));
    }
  });
}

TEST(address_of_ipv6_is_used_at_once_and_not_as_a_source) {
  const TestHub hub;
  const TestHost host(hub, 1);
  host.in([&] { CHECK(take_address(parse_service_address("fd09::9/64@eth0"))); });
  const std::string shown = host.told_by_ip("-6 addr show dev eth0 | grep fd09::9/");
  CHECK(shown.find("tentative") == std::string::npos);
  CHECK(shown.find("nodad") != std::string::npos);
  CHECK(shown.find("deprecated") != std::string::npos);
  CHECK(host.told_by_ip("-6 route get fd09::7").find("src fd09::1") != std::string::npos);
}

TEST(address_of_an_operator_is_neither_taken_nor_removed) {
  const TestHub hub;
  const TestHost host(hub, 1);
  CHECK(host.ip("addr add 10.9.0.9/24 dev eth0"));
  CHECK(host.ip("addr add fd09::9/64 dev eth0 nodad"));
  host.in([&] {
    for (const char* text : {"10.9.0.9/24@eth0", "10.9.0.9/32@eth0", "10.9.0.9/24@lo",
                             "fd09::9/64@eth0", "fd09::9/128@lo"}) {
      const ServiceAddress address = parse_service_address(text);
      CHECK(!find_address(address)->ours);
      CHECK_EQUAL(error_of([&] { take_address(address); }), EEXIST);
      CHECK(!give_up_address(address));
      CHECK(find_address(address).has_value());
    }
    const ServiceAddress nowhere = parse_service_address("10.9.0.8/24@eth7");
    CHECK_EQUAL(error_of([&] { take_address(nowhere); }), ENODEV);
    CHECK(!give_up_address(nowhere));
  });
}

TEST(address_that_came_first_leaves_the_others_of_its_network) {
  const TestHub hub;
  const TestHost host(hub, 1);
  CHECK(host.ip("addr del 10.9.0.1/24 dev eth0"));
  const ServiceAddress address = parse_service_address("10.9.0.9/24@eth0");
  host.in([&] { CHECK(take_address(address)); });
  CHECK(host.ip("addr add 10.9.0.1/24 dev eth0"));
  CHECK(host.told_by_ip("addr show dev eth0").find("10.9.0.1/24 scope global secondary") !=
        std::string::npos);
  host.in([&] { CHECK(give_up_address(address)); });
  const std::string shown = host.told_by_ip("addr show dev eth0");
  CHECK(shown.find("10.9.0.1/24") != std::string::npos);
  CHECK(shown.find("10.9.0.9/24") == std::string::npos);
  CHECK(host.told_by_ip("route").find("10.9.0.0/24 dev eth0") != std::string::npos);
}

TEST(address_needs_no_more_rights_than_it_says) {
  const TestHub hub;
  const TestHost host(hub, 1);
  host.in([&] {
    CHECK(::seteuid(65534) == 0);
    const ServiceAddress address = parse_service_address("10.9.0.9/24@eth0");
    CHECK_EQUAL(error_of([&] { take_address(address); }), EPERM);
    CHECK_EQUAL(error_of([&] { AddressAnnouncer announcer(address); }), EPERM);
  });
}

}  // namespace
}  // namespace replpage
