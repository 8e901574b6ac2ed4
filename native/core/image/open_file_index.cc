#include "core/image/open_file_index.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <tuple>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

enum class Order : uint8_t { kSame, kLess, kOther };

// Candidates that are alike, in kcmp(2)'s order, which is total while all of them are open.
class Chain {
 public:
  explicit Chain(std::span<const DescriptorCandidate> candidates) : candidates_(candidates) {}

  // `alike`: those that have a place, by place, then the others.
  void build(std::span<const uint32_t> alike) {
    std::vector<uint32_t> loose;
    for (const uint32_t index : alike) {
      const bool placed = *candidates_[index].place != 0;
      if (placed && links_.empty()) {
        links_.push_back({index, false});
        continue;
      }
      const Order order = placed ? compare(links_.back().index, index) : Order::kOther;
      if (order == Order::kOther) {
        loose.push_back(index);
      } else {
        links_.push_back({index, order == Order::kSame});
      }
    }
    if (!loose.empty()) merge(std::move(loose));
  }

  // Tells each candidate its place, and in `first` who is the first of its description.
  void tell(std::vector<uint32_t>& first) const {
    for (size_t begin = 0; begin < links_.size();) {
      size_t end = begin + 1;
      uint32_t least = links_[begin].index;
      for (; end < links_.size() && links_[end].same_as_before; ++end) {
        least = std::min(least, links_[end].index);
      }
      for (; begin < end; ++begin) {
        first[links_[begin].index] = least;
        *candidates_[links_[begin].index].place = static_cast<uint32_t>(begin) + 1;
      }
    }
  }

 private:
  struct Link {
    uint32_t index;
    bool same_as_before;
  };

  [[nodiscard]] Order compare(uint32_t a, uint32_t b) const {
    const DescriptorCandidate& one = candidates_[a];
    const DescriptorCandidate& other = candidates_[b];
    const long order =
        ::syscall(SYS_kcmp, one.host_pid, other.host_pid, KCMP_FILE, one.fd, other.fd);
    if (order < 0) {
      throw SysError::from_errno("kcmp fd " + std::to_string(other.fd), on_pid(other.host_pid));
    }
    return order == 0 ? Order::kSame : order == 1 ? Order::kLess : Order::kOther;
  }

  void merge(std::vector<uint32_t> loose) {
    std::stable_sort(loose.begin(), loose.end(),
                     [this](uint32_t a, uint32_t b) { return compare(a, b) == Order::kLess; });
    std::vector<Link> merged;
    merged.reserve(links_.size() + loose.size());
    const auto same_as_last = [&](uint32_t index) {
      return !merged.empty() && compare(merged.back().index, index) == Order::kSame;
    };
    auto next = links_.begin();
    bool check_next = false;
    const auto take_until = [&](std::vector<Link>::iterator end) {
      for (; next != end; ++next, check_next = false) {
        merged.push_back({next->index, check_next ? same_as_last(next->index)  //
                                                  : next->same_as_before});
      }
    };
    for (const uint32_t index : loose) {
      take_until(
          std::lower_bound(next, links_.end(), index, [this](const Link& link, uint32_t wanted) {
            return compare(link.index, wanted) == Order::kLess;
          }));
      merged.push_back({index, same_as_last(index)});
      check_next = true;
    }
    take_until(links_.end());
    links_ = std::move(merged);
  }

  std::span<const DescriptorCandidate> candidates_;
  std::vector<Link> links_;
};

}  // namespace

uint64_t descriptor_likeness(uint64_t inode, int32_t mount, uint32_t flags, uint64_t position) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (const uint64_t part : {inode, static_cast<uint64_t>(mount), uint64_t{flags}, position}) {
    hash = (hash ^ part) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

std::vector<uint32_t> first_of_same_file(std::span<const DescriptorCandidate> candidates) {
  std::vector<uint32_t> first(candidates.size());
  std::iota(first.begin(), first.end(), 0);
  std::vector<uint32_t> order = first;
  // Places start at 1: those without one come last.
  const auto key = [&candidates](uint32_t index) {
    const DescriptorCandidate& candidate = candidates[index];
    return std::tuple(candidate.likeness, *candidate.place - 1, index);
  };
  std::sort(order.begin(), order.end(), [&key](uint32_t a, uint32_t b) { return key(a) < key(b); });
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    const DescriptorCandidate& one = candidates[order[begin]];
    while (end < order.size() && candidates[order[end]].likeness == one.likeness) ++end;
    const std::span<const uint32_t> alike(order.data() + begin, end - begin);
    begin = end;
    if (alike.size() == 1) continue;
    if (one.certain) {
      const uint32_t least = *std::min_element(alike.begin(), alike.end());
      for (const uint32_t index : alike) first[index] = least;
      continue;
    }
    Chain chain(candidates);
    chain.build(alike);
    chain.tell(first);
  }
  return first;
}

}  // namespace replpage
