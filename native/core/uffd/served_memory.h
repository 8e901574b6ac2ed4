// One address space that runs while part of its pages are still in another process: what is
// missing, and how a page gets in. Not thread-safe: the owner's lock covers every call, so that no
// page is filled between the reading of an event and its effect here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/uffd/missing_pages.h"
#include "core/uffd/uffd.h"

namespace replpage {

// What became of an attempt to put pages in place.
enum class FillState : uint8_t {
  kDone,   // in place, or not wanted any more
  kAgain,  // an event is to be read first; or memory is short
  kGone,   // the address space has ended
};

class ServedMemory {
 public:
  ServedMemory(Uffd uffd, MissingPages missing)
      : uffd_(std::move(uffd)), missing_(std::move(missing)) {}

  // Applies the events among `messages` and returns the address spaces forked off. Faults among
  // them are appended to faults(). Events come first: a page that was discarded or moved after a
  // thread had faulted on it must not be filled with its old content.
  std::vector<std::unique_ptr<ServedMemory>> take(std::span<const uffd_msg> messages);

  // Fills what of [start, start + content.size()) is lazy with `content`; all-zero pages become
  // zero pages. Throws SysError when the kernel refuses for good.
  FillState fill(uint64_t start, std::span<const uint8_t> content);
  // A page that is missing and not lazy was discarded by the program: it reads zero.
  FillState fill_discarded(uint64_t page);
  // The content is lost: whoever touches what of the range is lazy gets SIGBUS. Only where
  // Uffd::can_poison().
  FillState poison(PageRange range);

  [[nodiscard]] const MissingPages& missing() const { return missing_; }
  [[nodiscard]] const Uffd& uffd() const { return uffd_; }
  [[nodiscard]] std::vector<uint64_t>& faults() { return faults_; }
  // Grows with every event: what was read from the source before it may belong elsewhere now.
  [[nodiscard]] uint64_t events_applied() const { return events_applied_; }
  [[nodiscard]] uint64_t pages_filled() const { return pages_filled_; }
  // Closing the userfaultfd leaves the memory to the kernel alone.
  void close() { uffd_.close(); }

 private:
  std::unique_ptr<ServedMemory> apply(const uffd_msg& event);
  void skip_page(uint64_t& address);
  // How a page gets in, and from what.
  struct Filling {
    enum class Kind : uint8_t { kCopy, kZero, kPoison } kind = Kind::kCopy;
    std::span<const uint8_t> content;  // kCopy; as long as the range
  };
  FillResult attempt(PageRange range, const Filling& filling) const;
  FillState put(PageRange range, const Filling& filling);

  Uffd uffd_;
  MissingPages missing_;
  std::vector<uint64_t> faults_;  // pages waited for
  uint64_t events_applied_ = 0;
  uint64_t pages_filled_ = 0;
};

}  // namespace replpage
