#include "core/address/announcement.h"

#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/ip6.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr EthernetAddress kEverybody{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr EthernetAddress kAllNodes{0x33, 0x33, 0, 0, 0, 1};
constexpr auto kFirstWait = std::chrono::milliseconds(100);

template <class T>
void append(Bytes& to, const T& value) {
  const auto* from = reinterpret_cast<const uint8_t*>(&value);
  to.insert(to.end(), from, from + sizeof value);
}

Bytes frame_to(const EthernetAddress& to, const EthernetAddress& from, uint16_t protocol) {
  ether_header header{};
  std::memcpy(header.ether_dhost, to.data(), to.size());
  std::memcpy(header.ether_shost, from.data(), from.size());
  header.ether_type = htons(protocol);
  Bytes frame;
  append(frame, header);
  return frame;
}

// Linux believes a gratuitous reply only where the target's hardware address is the sender's.
Bytes arp_frame(uint16_t operation, const ServiceAddress& address, const EthernetAddress& mac) {
  arphdr header{};
  header.ar_hrd = htons(ARPHRD_ETHER);
  header.ar_pro = htons(ETHERTYPE_IP);
  header.ar_hln = static_cast<uint8_t>(mac.size());
  header.ar_pln = 4;
  header.ar_op = htons(operation);
  Bytes frame = frame_to(kEverybody, mac, ETHERTYPE_ARP);
  append(frame, header);
  append(frame, mac);
  frame.insert(frame.end(), address.raw().begin(), address.raw().end());
  append(frame, operation == ARPOP_REPLY ? mac : EthernetAddress{});
  frame.insert(frame.end(), address.raw().begin(), address.raw().end());
  return frame;
}

struct Advertisement {
  nd_neighbor_advert advert;
  nd_opt_hdr option;
  EthernetAddress mac;
};
static_assert(sizeof(Advertisement) == 32);

// RFC 1071 over the pseudo header of RFC 8200 and the message.
uint16_t checksum(const ip6_hdr& header, const Advertisement& message) {
  Bytes bytes;
  append(bytes, header.ip6_src);
  append(bytes, header.ip6_dst);
  append(bytes, htonl(sizeof message));
  append(bytes, htonl(IPPROTO_ICMPV6));
  append(bytes, message);
  uint32_t sum = 0;
  for (size_t at = 0; at + 1 < bytes.size(); at += 2) {
    sum += static_cast<uint32_t>(bytes[at] << 8 | bytes[at + 1]);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

Bytes advertisement_frame(const ServiceAddress& address, const EthernetAddress& mac) {
  ip6_hdr header{};
  header.ip6_flow = htonl(6u << 28);
  header.ip6_plen = htons(sizeof(Advertisement));
  header.ip6_nxt = IPPROTO_ICMPV6;
  header.ip6_hlim = 255;
  std::memcpy(&header.ip6_src, address.bytes.data(), sizeof header.ip6_src);
  ::inet_pton(AF_INET6, "ff02::1", &header.ip6_dst);
  Advertisement message{};
  message.advert.nd_na_type = ND_NEIGHBOR_ADVERT;
  message.advert.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
  std::memcpy(&message.advert.nd_na_target, address.bytes.data(), sizeof header.ip6_src);
  message.option = {ND_OPT_TARGET_LINKADDR, 1};
  message.mac = mac;
  message.advert.nd_na_cksum = checksum(header, message);
  Bytes frame = frame_to(kAllNodes, mac, ETHERTYPE_IPV6);
  append(frame, header);
  append(frame, message);
  return frame;
}

}  // namespace

std::vector<Bytes> announcement_frames(const ServiceAddress& address, const EthernetAddress& mac) {
  if (address.family == AF_INET6) return {advertisement_frame(address, mac)};
  return {arp_frame(ARPOP_REQUEST, address, mac), arp_frame(ARPOP_REPLY, address, mac)};
}

AddressAnnouncer::AddressAnnouncer(const ServiceAddress& address)
    : socket_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
  if (!socket_.valid()) throw SysError::from_errno("open a packet socket");
  ifreq request{};
  std::memcpy(request.ifr_name, address.interface.data(),
              std::min(address.interface.size(), sizeof request.ifr_name - 1));
  const auto ask = [&](unsigned long what) {
    if (::ioctl(socket_.get(), what, &request) != 0) {
      throw SysError::from_errno("announce on " + address.interface);
    }
  };
  ask(SIOCGIFINDEX);
  interface_index_ = request.ifr_ifindex;
  ask(SIOCGIFHWADDR);
  if (request.ifr_hwaddr.sa_family == ARPHRD_ETHER) {
    EthernetAddress mac{};
    std::memcpy(mac.data(), request.ifr_hwaddr.sa_data, mac.size());
    frames_ = announcement_frames(address, mac);
  }
  send_round();
  if (!frames_.empty()) thread_ = std::thread([this] { run(); });
}

AddressAnnouncer::~AddressAnnouncer() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

unsigned AddressAnnouncer::rounds() const {
  const std::lock_guard lock(mutex_);
  return rounds_;
}

unsigned AddressAnnouncer::failed() const {
  const std::lock_guard lock(mutex_);
  return failed_;
}

void AddressAnnouncer::send_round() {
  bool sent = true;
  for (const Bytes& frame : frames_) {
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_ifindex = interface_index_;
    to.sll_halen = ETH_ALEN;
    std::memcpy(to.sll_addr, frame.data(), ETH_ALEN);
    const ssize_t put = ::sendto(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL,
                                 reinterpret_cast<const sockaddr*>(&to), sizeof to);
    sent = sent && put == static_cast<ssize_t>(frame.size());
  }
  const std::lock_guard lock(mutex_);
  ++rounds_;
  if (!sent) ++failed_;
}

void AddressAnnouncer::run() {
  auto wait = kFirstWait;
  for (unsigned round = 1; round < kRounds; ++round, wait *= 2) {
    {
      std::unique_lock lock(mutex_);
      if (changed_.wait_for(lock, wait, [this] { return quit_; })) return;
    }
    send_round();
  }
}

}  // namespace replpage
