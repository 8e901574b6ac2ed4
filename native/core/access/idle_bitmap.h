// /sys/kernel/mm/page_idle/bitmap (Documentation/admin-guide/mm/idle_page_tracking.rst): one bit a
// page frame, in words of 64. Writing a 1 makes the page idle, which it is until somebody touches
// it; zeros change nothing. The kernel looks for every mapping of a page that is asked for.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/base/unique_fd.h"

namespace replpage {

inline constexpr const char* kIdleBitmapPath = "/sys/kernel/mm/page_idle/bitmap";

class IdleBitmap {
 public:
  // Throws SysError.
  explicit IdleBitmap(const std::string& path);
  virtual ~IdleBitmap() = default;
  IdleBitmap(const IdleBitmap&) = delete;
  IdleBitmap& operator=(const IdleBitmap&) = delete;

  // Whether each of the frames (ascending) is idle. Frames beyond the bitmap are not.
  std::vector<uint8_t> read(std::span<const uint64_t> frames);
  // Makes the frames (ascending) idle. Those that are on none of the kernel's lists stay as they
  // are.
  void set(std::span<const uint64_t> frames);

 protected:
  // Writes words from number `first` on. Virtual for tests: in a plain file zeros are not nothing.
  virtual void write(std::span<const uint64_t> words, uint64_t first);

 private:
  // Words [first, last) that some frames are in, one after the other or nearly so.
  struct Span {
    uint64_t first = 0, last = 0;
    size_t frames = 0;
  };
  static Span first_span(std::span<const uint64_t> frames);

  std::string path_;
  UniqueFd file_;
  std::vector<uint64_t> words_;
};

}  // namespace replpage
