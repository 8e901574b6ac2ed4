#include "core/session/drill_check.h"

#include <utility>

namespace replpage {
namespace {

// Compared between two epochs: some 100 ms.
constexpr uint64_t kPartBytes = 64ull << 20;

}  // namespace

DrillCheck::DrillCheck(GroupContext& context, std::string node)
    : context_(context), node_(std::move(node)) {}

bool DrillCheck::go_on() {
  ReplicaSet& replicas = *context_.replicas;
  if (!std::exchange(began_, true)) {
    problem_ = replicas.why_not_there(node_);
    return problem_.empty();
  }
  // What an epoch that was given up has copied is in no replica.
  if (!context_.runs.empty()) return true;
  const bool more = context_.capture->compare(
      context_.last_image, cursor_, kPartBytes,
      [&](int32_t pid, const PageRange& range) {
        return replicas.hashes_of(
            node_,
            {.pid = pid, .start = range.start, .pages = static_cast<uint32_t>(range.pages())});
      },
      compared_);
  problem_ = compared_.wrong;
  return more && problem_.empty();
}

}  // namespace replpage
