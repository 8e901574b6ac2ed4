// Mappings lie in a maple tree (Documentation/core-api/maple_tree.rst, lib/maple_tree.c), since
// Linux 6.1. What is read is checked: the number of mappings, their order, and by the caller each
// one's range.
#include "core/image/kernel_mappings.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr uint32_t kNodeBytes = 256;
constexpr uint64_t kNodeMask = ~uint64_t{kNodeBytes - 1};
constexpr uint64_t kTypeShift = 3, kTypeMask = 15;          // of a pointer to a node
constexpr uint64_t kLeaf = 1, kRange = 2, kAllocation = 3;  // maple_leaf_64 and so on
constexpr uint64_t kKernelHalf = uint64_t{1} << 63;
constexpr size_t kLevelsMax = 8;
constexpr size_t kMappingsMax = 1u << 20;

uint64_t word(std::span<const uint8_t> bytes, uint64_t offset) {
  uint64_t value = 0;
  if (offset + sizeof value <= bytes.size()) std::memcpy(&value, &bytes[offset], sizeof value);
  return value;
}

uint64_t type_of(uint64_t entry) { return entry >> kTypeShift & kTypeMask; }

// Reads `length` bytes at each address, in as few runs as possible. False when one cannot be read.
template <class Take>
bool read_each(KernelMemory& memory, std::span<const uint64_t> addresses, uint32_t length,
               Take&& take) {
  for (size_t first = 0; first < addresses.size(); first += KernelMemory::kRequestsMax) {
    const size_t count = std::min(KernelMemory::kRequestsMax, addresses.size() - first);
    memory.start();
    for (size_t i = 0; i < count; ++i) memory.ask(addresses[first + i], length);
    memory.run();
    for (size_t i = 0; i < count; ++i) {
      const auto bytes = memory.result(i);
      if (bytes.empty() || !take(first + i, bytes)) return false;
    }
  }
  return true;
}

struct Sample {
  int advice;
  uint64_t bit;
};
constexpr Sample kSamples[] = {{MADV_DONTFORK, kVmDontCopy},
                               {MADV_DONTDUMP, kVmDontDump},
                               {MADV_WIPEONFORK, kVmWipeOnFork},
                               {MADV_SEQUENTIAL, kVmSequential},
                               {MADV_RANDOM, kVmRandom}};
constexpr uint64_t kSampleBits =
    kVmDontCopy | kVmDontDump | kVmWipeOnFork | kVmSequential | kVmRandom;

}  // namespace

KernelMappings::KernelMappings(const BtfTypes& types)
    : root_(types.offset("mm_struct", "mm_mt.ma_root")),
      count_(types.offset("mm_struct", "map_count")),
      start_(types.offset("vm_area_struct", "vm_start")),
      end_(types.offset("vm_area_struct", "vm_end")),
      flags_(types.offset("vm_area_struct", "vm_flags")) {
  mapping_bytes_ = std::max({start_, end_, flags_}) + static_cast<uint32_t>(sizeof(uint64_t));
  range_.pivots = types.offset("maple_range_64", "pivot");
  range_.slots = types.offset("maple_range_64", "slot");
  range_.count = (kNodeBytes - range_.slots) / sizeof(uint64_t);
  allocation_.pivots = types.offset("maple_arange_64", "pivot");
  allocation_.slots = types.offset("maple_arange_64", "slot");
  allocation_.count =
      (types.offset("maple_arange_64", "gap") - allocation_.slots) / sizeof(uint64_t);
}

std::optional<std::vector<VmBits>> KernelMappings::read(KernelMemory& memory,
                                                        uint64_t address_space) const {
  memory.start();
  const size_t root = memory.ask(address_space + root_, sizeof(uint64_t));
  const size_t count = memory.ask(address_space + count_, sizeof(int32_t));
  memory.run();
  if (memory.result(root).empty() || memory.result(count).empty()) return std::nullopt;
  int32_t mappings = 0;
  std::memcpy(&mappings, memory.result(count).data(), sizeof mappings);
  std::vector<Node> level{{word(memory.result(root), 0), UINT64_MAX}};
  if (!descend(memory, level) || level.size() != static_cast<size_t>(mappings)) return std::nullopt;
  return read_leaves(memory, level);
}

// From the root to the mappings, all nodes of a level at a time.
bool KernelMappings::descend(KernelMemory& memory, std::vector<Node>& level) const {
  for (size_t depth = 0; depth < kLevelsMax; ++depth) {
    std::vector<uint64_t> addresses;
    for (const Node& node : level) {
      if (node.entry < kKernelHalf) return false;
      addresses.push_back(node.entry & kNodeMask);
    }
    const bool leaves = !level.empty() && type_of(level.front().entry) == kLeaf;
    std::vector<Node> below;
    const bool read = read_each(memory, addresses, kNodeBytes, [&](size_t i, auto bytes) {
      const bool leaf = type_of(level[i].entry) == kLeaf;
      return leaf == leaves && expand(bytes, level[i], below) && below.size() <= kMappingsMax;
    });
    if (!read) return false;
    level = std::move(below);
    if (leaves) return true;
  }
  return false;
}

// The last slot in use is the one whose pivot is the node's end, or that has none.
bool KernelMappings::expand(std::span<const uint8_t> bytes, const Node& node,
                            std::vector<Node>& below) const {
  const uint64_t type = type_of(node.entry);
  if (type < kLeaf || type > kAllocation) return false;
  const Layout& layout = type == kAllocation ? allocation_ : range_;
  for (size_t i = 0; i < layout.count; ++i) {
    const bool has_pivot = i + 1 < layout.count;
    uint64_t pivot = has_pivot ? word(bytes, layout.pivots + i * sizeof(uint64_t)) : 0;
    const bool last = pivot == 0 || pivot >= node.highest;
    if (last) pivot = node.highest;
    const uint64_t entry = word(bytes, layout.slots + i * sizeof(uint64_t));
    if (entry != 0) below.push_back({entry, pivot});
    if (last) break;
  }
  return true;
}

std::optional<std::vector<VmBits>> KernelMappings::read_leaves(
    KernelMemory& memory, std::span<const Node> mappings) const {
  std::vector<uint64_t> addresses;
  for (const Node& mapping : mappings) addresses.push_back(mapping.entry);
  std::vector<VmBits> all;
  all.reserve(addresses.size());
  const bool read = read_each(memory, addresses, mapping_bytes_, [&](size_t, auto bytes) {
    const VmBits bits{word(bytes, start_), word(bytes, end_), word(bytes, flags_)};
    const bool ascends = all.empty() || all.back().end <= bits.start;
    all.push_back(bits);
    return ascends && bits.start < bits.end;
  });
  if (!read) return std::nullopt;
  return all;
}

bool KernelMappings::understands_own(KernelMemory& memory, uint64_t own_address_space) const {
  const size_t bytes = std::size(kSamples) * kPageSize;
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return false;
  const auto start = reinterpret_cast<uint64_t>(at);
  bool advised = true;
  for (size_t i = 0; i < std::size(kSamples); ++i) {
    auto* page = static_cast<uint8_t*>(at) + i * kPageSize;
    advised = advised && ::madvise(page, kPageSize, kSamples[i].advice) == 0;
  }
  // Our other threads map and unmap meanwhile.
  constexpr int kTries = 10;
  std::optional<std::vector<VmBits>> all;
  for (int i = 0; i < kTries && !all; ++i) all = read(memory, own_address_space);
  ::munmap(at, bytes);
  if (!advised || !all) return false;
  for (size_t i = 0; i < std::size(kSamples); ++i) {
    const VmBits wanted{start + i * kPageSize, start + (i + 1) * kPageSize, kSamples[i].bit};
    const bool found = std::any_of(all->begin(), all->end(), [&wanted](const VmBits& bits) {
      return bits.start == wanted.start && bits.end == wanted.end &&
             (bits.flags & kSampleBits) == wanted.flags;
    });
    if (!found) return false;
  }
  return true;
}

}  // namespace replpage
