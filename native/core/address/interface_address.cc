#include "core/address/interface_address.h"

#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/address/netlink.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

std::string name_of(unsigned index) {
  char name[IF_NAMESIZE] = {};
  return ::if_indextoname(index, name) == nullptr ? "interface " + std::to_string(index) : name;
}

struct Entry {
  ifaddrmsg header{};
  uint32_t flags = 0;
  uint8_t protocol = 0;
  std::vector<uint8_t> local;
};

Entry read_entry(const nlmsghdr& message) {
  Entry entry;
  std::memcpy(&entry.header, NLMSG_DATA(&message), sizeof entry.header);
  entry.flags = entry.header.ifa_flags;
  auto left = static_cast<int>(message.nlmsg_len - NLMSG_LENGTH(sizeof entry.header));
  const auto* attribute = IFA_RTA(NLMSG_DATA(&message));
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
    const auto* data = static_cast<const uint8_t*>(RTA_DATA(attribute));
    const size_t size = RTA_PAYLOAD(attribute);
    if (attribute->rta_type == IFA_FLAGS && size >= sizeof entry.flags) {
      std::memcpy(&entry.flags, data, sizeof entry.flags);
    } else if (attribute->rta_type == IFA_PROTO && size >= 1) {
      entry.protocol = *data;
    } else if (attribute->rta_type == IFA_LOCAL ||
               (attribute->rta_type == IFA_ADDRESS && entry.local.empty())) {
      // Of a point-to-point interface IFA_ADDRESS is the other end.
      entry.local.assign(data, data + size);
    }
  }
  return entry;
}

std::vector<Entry> read_entries(NetlinkSocket& netlink, int family) {
  std::vector<Entry> entries;
  ifaddrmsg body{};
  body.ifa_family = static_cast<uint8_t>(family);
  NetlinkMessage message(RTM_GETADDR, NLM_F_DUMP);
  message.body(body);
  netlink.dump(std::move(message), "list the addresses", [&](const nlmsghdr& header) {
    if (header.nlmsg_type == RTM_NEWADDR) entries.push_back(read_entry(header));
  });
  return entries;
}

bool same_network(const Entry& entry, const ServiceAddress& address) {
  if (entry.header.ifa_prefixlen != address.prefix) return false;
  for (size_t bit = 0; bit < address.prefix; ++bit) {
    const int shift = 7 - static_cast<int>(bit % 8);
    if (((entry.local[bit / 8] ^ address.bytes[bit / 8]) >> shift & 1) != 0) return false;
  }
  return true;
}

std::optional<FoundAddress> find_among(const std::vector<Entry>& entries,
                                       const ServiceAddress& address) {
  std::optional<FoundAddress> found;
  for (const Entry& entry : entries) {
    if (!std::ranges::equal(entry.local, address.raw())) continue;
    FoundAddress here;
    here.ours = entry.protocol == kAddressProtocol;
    here.prefix = entry.header.ifa_prefixlen;
    here.interface_index = entry.header.ifa_index;
    here.where =
        address.host() + "/" + std::to_string(here.prefix) + " on " + name_of(here.interface_index);
    // One of somebody else counts for more.
    if (!found || !here.ours) found = here;
  }
  return found;
}

NetlinkMessage address_message(uint16_t type, uint16_t flags, const ServiceAddress& address,
                               unsigned index) {
  ifaddrmsg body{};
  body.ifa_family = static_cast<uint8_t>(address.family);
  body.ifa_prefixlen = static_cast<uint8_t>(address.prefix);
  body.ifa_scope = RT_SCOPE_UNIVERSE;
  body.ifa_index = index;
  NetlinkMessage message(type, static_cast<uint16_t>(NLM_F_ACK | flags));
  message.body(body);
  message.attribute(IFA_LOCAL, address.raw());
  message.attribute(IFA_ADDRESS, address.raw());
  return message;
}

unsigned index_of(const ServiceAddress& address) {
  const unsigned index = ::if_nametoindex(address.interface.c_str());
  if (index == 0) throw SysError("find the interface " + address.interface, ENODEV);
  return index;
}

void add(NetlinkSocket& netlink, const ServiceAddress& address, unsigned index) {
  NetlinkMessage message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address, index);
  message.attribute_u8(IFA_PROTO, kAddressProtocol);
  if (address.family == AF_INET6) {
    // Duplicate address detection would keep it from being used for a second. It is for those who
    // come: what this machine begins by itself has another source (RFC 6724, rule 3).
    message.attribute_u32(IFA_FLAGS, IFA_F_NODAD);
    ifa_cacheinfo life{};
    life.ifa_valid = UINT32_MAX;
    life.ifa_prefered = 0;
    message.attribute(IFA_CACHEINFO,
                      std::span(reinterpret_cast<const uint8_t*>(&life), sizeof life));
  }
  netlink.request(std::move(message), "put " + address.host() + " on " + address.interface);
}

void remove(NetlinkSocket& netlink, const ServiceAddress& address, unsigned index) {
  netlink.request(address_message(RTM_DELADDR, 0, address, index),
                  "take " + address.host() + " from " + name_of(index));
}

// With the first IPv4 address of a network on an interface the kernel takes away the others of that
// network, unless this is set: then the next of them becomes the first, its routes too.
class SecondariesPromoted {
 public:
  explicit SecondariesPromoted(const std::string& interface)
      : path_("/proc/sys/net/ipv4/conf/" + interface + "/promote_secondaries"),
        before_(read_proc(path_).value_or("0")) {
    set("1");
  }
  ~SecondariesPromoted() {
    try {
      set(before_);
    } catch (const SysError&) {
      // The next address is kept once more than was asked for.
    }
  }
  SecondariesPromoted(const SecondariesPromoted&) = delete;
  SecondariesPromoted& operator=(const SecondariesPromoted&) = delete;

 private:
  void set(const std::string& value) const {
    const UniqueFd file = open_path(path_, O_WRONLY);
    if (::write(file.get(), value.data(), value.size()) < 0) {
      throw SysError::from_errno("keep the other addresses of the network", on_path(path_));
    }
  }

  std::string path_;
  std::string before_;
};

}  // namespace

std::optional<FoundAddress> find_address(const ServiceAddress& address) {
  (void)index_of(address);
  NetlinkSocket netlink(NETLINK_ROUTE);
  return find_among(read_entries(netlink, address.family), address);
}

bool take_address(const ServiceAddress& address) {
  NetlinkSocket netlink(NETLINK_ROUTE);
  const unsigned index = index_of(address);
  const auto find = [&] { return find_among(read_entries(netlink, address.family), address); };
  if (const auto found = find()) {
    if (found->ours && found->interface_index == index && found->prefix == address.prefix) {
      return false;
    }
    throw SysError("take the address: " + found->where +
                       (found->ours ? " was put there by replpage" : " was configured by others"),
                   EEXIST);
  }
  add(netlink, address, index);
  const auto made = find();
  if (made && made->ours) return true;
  remove(netlink, address, index);
  throw SysError("mark " + address.host() + " as replpage's own", EOPNOTSUPP);
}

bool give_up_address(const ServiceAddress& address) {
  NetlinkSocket netlink(NETLINK_ROUTE);
  const unsigned index = ::if_nametoindex(address.interface.c_str());
  const auto entries = read_entries(netlink, address.family);
  const auto of_network = [&](const Entry& entry) {
    return entry.header.ifa_index == index && same_network(entry, address);
  };
  const auto mine = std::ranges::find_if(entries, [&](const Entry& entry) {
    return of_network(entry) && std::ranges::equal(entry.local, address.raw()) &&
           entry.protocol == kAddressProtocol;
  });
  if (mine == entries.end()) return false;
  std::optional<SecondariesPromoted> promoted;
  const bool first = address.family == AF_INET && (mine->flags & IFA_F_SECONDARY) == 0;
  if (first && std::ranges::count_if(entries, of_network) > 1) promoted.emplace(address.interface);
  remove(netlink, address, index);
  return true;
}

}  // namespace replpage
