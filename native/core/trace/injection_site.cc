#include "core/trace/injection_site.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/page.h"
#include "core/base/procfs.h"
#include "core/base/unique_fd.h"
#include "core/trace/remote_memory.h"

namespace replpage {
namespace {

constexpr std::string_view kSyscall("\x0f\x05", 2);
constexpr std::string_view kSyscallReturn("\x0f\x05\xc3", 3);
constexpr std::string_view kRestorer("\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05", 9);
constexpr std::string_view kMark("replpage scratch", kScratchMarkBytes);
constexpr uint64_t kReadBytes = 256 * 1024;
constexpr uint64_t kTextMax = 256u << 20;  // more text than this is not searched
// Left free below the scratch memory, for signal handlers in case we die in the middle.
constexpr uint64_t kRoomBelow = 2 * kPageSize;
constexpr uint64_t kPagePresentOrSwapped = (1ull << 63) | (1ull << 62);

struct Area {
  PageRange range;
  std::string_view modes;
  std::string_view name;
};

// A line of /proc/PID/maps: "start-end modes offset device inode   name".
Area parse_area(std::string_view line) {
  Area area;
  const char* end = line.data() + line.size();
  const auto first = std::from_chars(line.data(), end, area.range.start, 16);
  const auto second = std::from_chars(first.ptr + 1, end, area.range.end, 16);
  area.modes = std::string_view(second.ptr + 1, 4);
  const size_t name = line.find_first_of("/[");
  if (name != std::string_view::npos) area.name = line.substr(name);
  return area;
}

std::vector<Area> parse_areas(std::string_view text) {
  std::vector<Area> areas;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) areas.push_back(parse_area(text.substr(0, end)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return areas;
}

void search(std::string_view text, uint64_t address, InjectionSite& site) {
  const auto find = [&](std::string_view code, uint64_t& found) {
    if (found != 0) return;
    const size_t at = text.find(code);
    if (at != std::string_view::npos) found = address + at;
  };
  find(kSyscall, site.plain_syscall);
  find(kSyscallReturn, site.syscall_return);
  find(kRestorer, site.restorer);
}

void search_area(pid_t tid, const PageRange& range, InjectionSite& site) {
  std::vector<char> text(kReadBytes + kPageSize);
  for (uint64_t at = range.start; at < range.end && !site.self_completing(); at += kReadBytes) {
    // One page more than the step, so that nothing hides across the border.
    const uint64_t size = std::min<uint64_t>(range.end - at, text.size());
    if (!read_remote(tid, at, text.data(), size)) return;
    search({text.data(), size}, at, site);
  }
}

bool holds(pid_t tid, uint64_t address, std::string_view code) {
  char text[kScratchMarkBytes] = {};
  return address != 0 && code.size() <= sizeof text &&
         read_remote(tid, address, text, code.size()) &&
         std::string_view(text, code.size()) == code;
}

bool untouched(pid_t tid, const PageRange& range) {
  const UniqueFd pagemap(
      ::open(("/proc/" + std::to_string(tid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<uint64_t> pages(range.pages());
  const auto size = static_cast<ssize_t>(pages.size() * sizeof(uint64_t));
  const auto offset = static_cast<off_t>(range.start / kPageSize * sizeof(uint64_t));
  if (!pagemap.valid() || ::pread(pagemap.get(), pages.data(), size, offset) != size) return false;
  return std::none_of(pages.begin(), pages.end(),
                      [](uint64_t page) { return (page & kPagePresentOrSwapped) != 0; });
}

// A call's frame lies above its stack pointer, and handlers of signals run below it.
bool is_in_use(const PageRange& scratch, std::span<const uint64_t> stack_pointers) {
  return std::any_of(stack_pointers.begin(), stack_pointers.end(), [&](uint64_t pointer) {
    return scratch.start < pointer + scratch.bytes() + kRoomBelow &&
           scratch.end > pointer - kRoomBelow;
  });
}

}  // namespace

InjectionSite find_injection_code(pid_t tid) {
  InjectionSite site;
  const auto maps = read_proc("/proc/" + std::to_string(tid) + "/maps");
  if (!maps) return site;
  std::vector<Area> areas = parse_areas(*maps);
  std::erase_if(areas, [](const Area& area) {
    return !area.modes.starts_with("r-x") || area.range.bytes() > kTextMax ||
           area.name == "[vsyscall]";
  });
  // The C library has both pieces of code; most programs have one.
  std::stable_partition(areas.begin(), areas.end(), [](const Area& area) {
    return area.name.find("/libc") != std::string_view::npos ||
           area.name.find("/ld-musl") != std::string_view::npos;
  });
  for (const Area& area : areas) {
    if (site.self_completing()) break;
    search_area(tid, area.range, site);
  }
  return site;
}

bool injection_code_is_there(pid_t tid, const InjectionSite& site) {
  if (!site.self_completing()) return holds(tid, site.plain_syscall, kSyscall);
  return holds(tid, site.syscall_return, kSyscallReturn) && holds(tid, site.restorer, kRestorer);
}

bool scratch_serves(uint64_t size, uint64_t main_stack_pointer, const InjectionSite& site) {
  const uint64_t bytes = page_ceil(size + kScratchMarkBytes);
  return site.scratch_end - site.scratch >= bytes &&
         main_stack_pointer >= site.scratch_end + kPageSize && main_stack_pointer < site.stack_end;
}

void find_scratch(pid_t tid, uint64_t size, uint64_t main_stack_pointer,
                  std::span<const uint64_t> stack_pointers, InjectionSite& site) {
  const uint64_t bytes = page_ceil(size + kScratchMarkBytes);
  const uint64_t old_end = site.scratch_end;
  site.scratch = site.scratch_end = site.stack_end = 0;
  const auto maps = read_proc("/proc/" + std::to_string(tid) + "/maps");
  if (!maps) return;
  for (const Area& area : parse_areas(*maps)) {
    if (area.name != "[stack]" || !area.modes.starts_with("rw")) continue;
    const uint64_t first_end = area.range.start + kRoomBelow + bytes;
    const bool below_is_dead = area.range.contains(main_stack_pointer);
    const uint64_t limit =
        below_is_dead ? page_floor(main_stack_pointer) - kPageSize : area.range.end;
    for (uint64_t end = first_end; end <= limit; end += kPageSize) {
      if (is_in_use({end - bytes, end}, stack_pointers)) continue;
      const bool ours = end == old_end || holds(tid, end - kScratchMarkBytes, kMark);
      if (!below_is_dead && !ours && !untouched(tid, {end - bytes, end})) continue;
      site.scratch = end - bytes;
      site.scratch_end = end;
      site.stack_end = area.range.end;
      return;
    }
  }
}

bool mark_scratch(pid_t tid, const InjectionSite& site) {
  return write_remote(tid, site.scratch_end - kScratchMarkBytes, kMark.data(), kMark.size());
}

}  // namespace replpage
