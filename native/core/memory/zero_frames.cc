#include "core/memory/zero_frames.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <utility>

#include "core/base/page.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/memory/pagemap_entries.h"

namespace replpage {
namespace {

constexpr uint64_t kHugePages = 512;        // of 4 KiB in one of 2 MiB
constexpr uint64_t kFlagZero = 1ull << 24;  // KPF_ZERO_PAGE in linux/kernel-page-flags.h

std::optional<uint64_t> word_at(int fd, uint64_t index) {
  uint64_t word = 0;
  const ssize_t got = ::pread(fd, &word, sizeof word, static_cast<off_t>(index * sizeof word));
  if (got < 0) throw SysError::from_errno("look at page frames");
  return got == sizeof word ? std::optional(word) : std::nullopt;
}

}  // namespace

std::optional<ZeroFrames> ZeroFrames::find() {
  void* at = ::mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return std::nullopt;
  std::optional<ZeroFrames> found;
  try {
    (void)*static_cast<const volatile char*>(at);
    const UniqueFd pagemap = open_path("/proc/self/pagemap", O_RDONLY);
    const auto entry = word_at(pagemap.get(), reinterpret_cast<uint64_t>(at) / kPageSize);
    ZeroFrames frames(open_path("/proc/kpageflags", O_RDONLY), entry.value_or(0) & kEntryFrame);
    if (frames.is_zero(frames.frame_)) found = std::move(frames);
  } catch (const SysError&) {
    found.reset();
  }
  ::munmap(at, kPageSize);
  return found;
}

const ZeroFrames* ZeroFrames::instance() {
  static const std::optional<ZeroFrames> frames = find();
  return frames ? &*frames : nullptr;
}

bool ZeroFrames::is_zero(uint64_t frame) const {
  return frame != 0 && (word_at(flags_.get(), frame).value_or(0) & kFlagZero) != 0;
}

// The huge zero page is another one each time somebody needs it, so its flags are asked for: of
// frames that are where a huge page would have them, and that others map too.
void ZeroFrames::leave_out(std::span<uint64_t> entries, uint64_t start) const {
  constexpr uint64_t kNot = kEntrySwapped | kEntryFile | kEntryExclusive;
  uint64_t asked = 0;  // the last huge page asked about
  bool asked_is_zero = false;
  for (size_t i = 0; i < entries.size(); ++i) {
    if ((entries[i] & (kEntryPresent | kNot)) != kEntryPresent) continue;
    const uint64_t frame = entries[i] & kEntryFrame;
    bool zero = frame == frame_;
    if (!zero && frame % kHugePages == (start / kPageSize + i) % kHugePages) {
      const uint64_t huge = frame - frame % kHugePages;
      if (huge != asked) asked_is_zero = is_zero(huge);
      asked = huge;
      zero = asked_is_zero;
    }
    if (zero) entries[i] = 0;
  }
}

}  // namespace replpage
