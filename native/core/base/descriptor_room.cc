#include "core/base/descriptor_room.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <bit>

#include "core/base/unique_fd.h"

namespace replpage {

void make_descriptor_room(size_t descriptors) {
  constexpr size_t kLeast = 1024;
  static std::atomic<size_t> made = 0;
  const UniqueFd lowest(::eventfd(0, EFD_CLOEXEC));
  if (!lowest.valid()) return;
  const size_t wanted = std::max(static_cast<size_t>(lowest.get()) + descriptors, kLeast);
  if (wanted <= made) return;
  const size_t room = std::bit_ceil(wanted);
  const UniqueFd highest(::fcntl(lowest.get(), F_DUPFD_CLOEXEC, static_cast<int>(room - 1)));
  made = room;
}

}  // namespace replpage
