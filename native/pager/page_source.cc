#include "pager/page_source.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/page.h"
#include "core/memory/zero_page.h"

namespace replpage {
namespace {

// Whole pages that could be read.
uint32_t read_some(int file, uint64_t offset, std::span<uint8_t> into) {
  size_t done = 0;
  while (done < into.size()) {
    const ssize_t got =
        ::pread(file, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (got == 0 || errno != EINTR) {
      break;
    }
  }
  return static_cast<uint32_t>(done / kPageSize);
}

}  // namespace

PagesRead read_pages(int file, uint64_t offset, uint32_t pages, std::vector<uint8_t>& room,
                     const std::function<void(uint32_t, std::span<const uint8_t>)>& visit) {
  PagesRead result;
  room.resize(kChunkPages * kPageSize);
  for (uint32_t at = 0; at < pages;) {
    const uint32_t wanted = std::min(pages - at, kChunkPages);
    const uint32_t got =
        read_some(file, offset + at * kPageSize, {room.data(), wanted * kPageSize});
    for (uint32_t page = 0; page < got;) {
      uint32_t end = page;
      while (end < got && !is_zero_page(room.data() + end * kPageSize)) ++end;
      if (end > page) {
        visit(at + page, {room.data() + page * kPageSize, (end - page) * kPageSize});
        page = end;
      } else {
        ++result.zero;
        ++page;
      }
    }
    at += got;
    if (got == wanted) continue;
    // The next page is not there; what follows it may be.
    ++result.unreadable;
    ++at;
  }
  return result;
}

}  // namespace replpage
