// What a replica that joins, or is tried out, needs of a group that runs.
#include <algorithm>
#include <string>
#include <utility>

#include "core/group/group_capture.h"

namespace replpage {

bool GroupCapture::copy_again_from(CopyCursor& cursor, uint64_t bytes_max) {
  const std::lock_guard lock(memory_mutex_);
  if (!std::exchange(cursor.began, true)) shared_->copy_all_again();
  uint64_t left = bytes_max;
  for (auto at = members_.lower_bound(cursor.host_pid); at != members_.end(); ++at) {
    auto& [pid, member] = *at;
    const uint64_t from = pid == cursor.host_pid ? cursor.address : 0;
    if (!member.memory || from == UINT64_MAX) continue;
    const MemoryCapture::OwedPart part = member.memory->copy_again_from(from, left);
    cursor = {.host_pid = pid, .address = part.next, .began = true};
    left -= part.bytes;
    if (left == 0) return true;
  }
  return false;
}

bool GroupCapture::compare(const GroupImage& image, CopyCursor& cursor, uint64_t bytes_max,
                           const HashesOf& theirs, Compared& result) {
  const std::lock_guard lock(memory_mutex_);
  for (auto at = members_.lower_bound(cursor.host_pid); at != members_.end(); ++at) {
    auto& [pid, member] = *at;
    const uint64_t from = pid == cursor.host_pid ? cursor.address : 0;
    const auto process = std::ranges::find(image.processes, member.group_pid, &ProcessImage::pid);
    if (!member.memory || from == UINT64_MAX || process == image.processes.end()) continue;
    const Comparison part = member.memory->compare(
        process->mappings, from, bytes_max,
        [&theirs, &member](const PageRange& range) { return theirs(member.group_pid, range); });
    cursor = {.host_pid = pid, .address = part.next, .began = true};
    result.pages += part.pages;
    if (result.wrong.empty() && !part.wrong.empty()) {
      result.wrong = "the page at " + std::to_string(part.wrong.front().start) + " of process " +
                     std::to_string(member.group_pid) + " differs from the primary's";
    }
    return true;
  }
  return false;
}

}  // namespace replpage
