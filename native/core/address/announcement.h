// Tells the neighbours of an interface that an address is there now: gratuitous ARP for IPv4,
// unsolicited neighbour advertisements with the override flag for IPv6 (RFC 826, 4861).
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "core/address/service_address.h"
#include "core/base/archive.h"
#include "core/base/unique_fd.h"

namespace replpage {

using EthernetAddress = std::array<uint8_t, 6>;

// Whole Ethernet frames, to everybody: an ARP request and an ARP reply (some listen to the one and
// some to the other), or one neighbour advertisement.
std::vector<Bytes> announcement_frames(const ServiceAddress& address, const EthernetAddress& mac);

// Announces in rounds: the first within the constructor, the others from a thread of its own until
// they are over or this goes: 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 s later, since a frame may be lost
// and a switch may have just been plugged in. What cannot be sent now is sent in the next round.
class AddressAnnouncer {
 public:
  static constexpr unsigned kRounds = 7;

  // In the network namespace of the calling thread. On an interface without Ethernet addresses
  // there is nobody to tell. Throws SysError: ENODEV, EPERM.
  explicit AddressAnnouncer(const ServiceAddress& address);
  ~AddressAnnouncer();
  AddressAnnouncer(const AddressAnnouncer&) = delete;
  AddressAnnouncer& operator=(const AddressAnnouncer&) = delete;

  [[nodiscard]] unsigned rounds() const;  // until now
  [[nodiscard]] unsigned failed() const;  // of these, that could not be sent

 private:
  void send_round();
  void run();

  UniqueFd socket_;
  int interface_index_ = 0;
  std::vector<Bytes> frames_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  unsigned rounds_ = 0;
  unsigned failed_ = 0;
  bool quit_ = false;
  std::thread thread_;
};

}  // namespace replpage
