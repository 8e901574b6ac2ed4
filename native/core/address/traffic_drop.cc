#include "core/address/traffic_drop.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/random.h>

#include <array>
#include <cinttypes>
#include <cstdio>
#include <utility>
#include <vector>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Before all else that is done to a packet, conntrack included (NF_IP_PRI_RAW_BEFORE_DEFRAG, -450).
constexpr uint32_t kPriority = static_cast<uint32_t>(-500);

// Offsets in the IP header (RFC 791, 8200).
struct HeaderFields {
  uint8_t family;
  uint32_t source, destination;
  uint8_t control;  // protocol that passes
};

HeaderFields fields_of(const ServiceAddress& address) {
  if (address.family == AF_INET) return {NFPROTO_IPV4, 12, 16, IPPROTO_ICMP};
  return {NFPROTO_IPV6, 8, 24, IPPROTO_ICMPV6};
}

NetlinkMessage message_of(int what, uint16_t flags, uint8_t family) {
  NetlinkMessage message(static_cast<uint16_t>(NFNL_SUBSYS_NFTABLES << 8 | what),
                         static_cast<uint16_t>(NLM_F_ACK | flags));
  message.body(nfgenmsg{family, NFNETLINK_V0, 0});
  return message;
}

NetlinkMessage batch_edge(uint16_t type) {
  NetlinkMessage message(type, 0);
  message.body(nfgenmsg{AF_UNSPEC, NFNETLINK_V0, htons(NFNL_SUBSYS_NFTABLES)});
  return message;
}

void expression(NetlinkMessage& to, std::string_view name,
                const std::function<void(NetlinkMessage&)>& data) {
  to.nest(NFTA_LIST_ELEM, [&](NetlinkMessage& element) {
    element.attribute(NFTA_EXPR_NAME, name);
    element.nest(NFTA_EXPR_DATA, data);
  });
}

void compare(NetlinkMessage& to, uint32_t operation, std::span<const uint8_t> value) {
  expression(to, "cmp", [&](NetlinkMessage& data) {
    data.attribute_be32(NFTA_CMP_SREG, NFT_REG_1);
    data.attribute_be32(NFTA_CMP_OP, operation);
    data.nest(NFTA_CMP_DATA, [&](NetlinkMessage& cmp) { cmp.attribute(NFTA_DATA_VALUE, value); });
  });
}

// The address stands at `offset`, and it is not of the control protocol: drop.
void drop_rule(NetlinkMessage& rule, const ServiceAddress& address, uint32_t offset) {
  rule.nest(NFTA_RULE_EXPRESSIONS, [&](NetlinkMessage& list) {
    expression(list, "payload", [&](NetlinkMessage& data) {
      data.attribute_be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
      data.attribute_be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
      data.attribute_be32(NFTA_PAYLOAD_OFFSET, offset);
      data.attribute_be32(NFTA_PAYLOAD_LEN, static_cast<uint32_t>(address.raw().size()));
    });
    compare(list, NFT_CMP_EQ, address.raw());
    expression(list, "meta", [&](NetlinkMessage& data) {
      data.attribute_be32(NFTA_META_DREG, NFT_REG_1);
      data.attribute_be32(NFTA_META_KEY, NFT_META_L4PROTO);
    });
    const uint8_t control = fields_of(address).control;
    compare(list, NFT_CMP_NEQ, std::span(&control, 1));
    expression(list, "immediate", [&](NetlinkMessage& data) {
      data.attribute_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
      data.nest(NFTA_IMMEDIATE_DATA, [](NetlinkMessage& value) {
        value.nest(NFTA_DATA_VERDICT, [](NetlinkMessage& verdict) {
          verdict.attribute_be32(NFTA_VERDICT_CODE, NF_DROP);
        });
      });
    });
  });
}

NetlinkMessage chain_at(uint8_t family, uint32_t hook, const std::string& table,
                        std::string_view name) {
  NetlinkMessage chain = message_of(NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, family);
  chain.attribute(NFTA_CHAIN_TABLE, table);
  chain.attribute(NFTA_CHAIN_NAME, name);
  chain.nest(NFTA_CHAIN_HOOK, [&](NetlinkMessage& data) {
    data.attribute_be32(NFTA_HOOK_HOOKNUM, hook);
    data.attribute_be32(NFTA_HOOK_PRIORITY, kPriority);
  });
  chain.attribute(NFTA_CHAIN_TYPE, std::string_view("filter"));
  return chain;
}

NetlinkMessage rule_in(const ServiceAddress& address, uint32_t offset, const std::string& table,
                       std::string_view chain) {
  NetlinkMessage rule =
      message_of(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, fields_of(address).family);
  rule.attribute(NFTA_RULE_TABLE, table);
  rule.attribute(NFTA_RULE_CHAIN, chain);
  drop_rule(rule, address, offset);
  return rule;
}

// In a network namespace no two tables of a family have one name; whoever else is in it may be in
// another PID namespace.
std::string fresh_name() {
  uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) {
    throw SysError::from_errno("name a table");
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "replpage_drop_%016" PRIx64, number);
  return text.data();
}

}  // namespace

TrafficDrop::TrafficDrop(const ServiceAddress& address)
    : netlink_(NETLINK_NETFILTER), table_(fresh_name()) {
  const HeaderFields fields = fields_of(address);
  family_ = fields.family;
  NetlinkMessage table = message_of(NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, fields.family);
  table.attribute(NFTA_TABLE_NAME, table_);
  table.attribute_be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
  std::vector<NetlinkMessage> batch;
  batch.push_back(batch_edge(NFNL_MSG_BATCH_BEGIN));
  batch.push_back(std::move(table));
  batch.push_back(chain_at(fields.family, NF_INET_PRE_ROUTING, table_, "in"));
  batch.push_back(chain_at(fields.family, NF_INET_LOCAL_OUT, table_, "out"));
  batch.push_back(rule_in(address, fields.destination, table_, "in"));
  batch.push_back(rule_in(address, fields.source, table_, "out"));
  batch.push_back(batch_edge(NFNL_MSG_BATCH_END));
  const auto asked = static_cast<unsigned>(batch.size() - 2);
  netlink_.request_all(batch, asked, "drop packets of " + address.host());
}

TrafficDrop::~TrafficDrop() { lift(); }

void TrafficDrop::lift() noexcept {
  if (std::exchange(lifted_, true)) return;
  try {
    std::vector<NetlinkMessage> batch;
    batch.push_back(batch_edge(NFNL_MSG_BATCH_BEGIN));
    batch.push_back(message_of(NFT_MSG_DELTABLE, 0, family_));
    batch.back().attribute(NFTA_TABLE_NAME, table_);
    batch.push_back(batch_edge(NFNL_MSG_BATCH_END));
    netlink_.request_all(batch, 1, "lift a drop");
  } catch (const std::exception&) {
    netlink_.close();  // which does the same
  }
}

}  // namespace replpage
