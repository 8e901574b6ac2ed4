#include "core/uffd/served_memory.h"

#include <algorithm>
#include <cstring>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

bool all_zero(const uint8_t* page) {
  // Comparing a page with itself shifted by a word is what the C library does fastest.
  uint64_t first = 0;
  std::memcpy(&first, page, sizeof first);
  return first == 0 && std::memcmp(page, page + sizeof first, kPageSize - sizeof first) == 0;
}

}  // namespace

std::vector<std::unique_ptr<ServedMemory>> ServedMemory::take(std::span<const uffd_msg> messages) {
  std::vector<std::unique_ptr<ServedMemory>> forked;
  for (const uffd_msg& message : messages) {
    if (message.event == UFFD_EVENT_PAGEFAULT) {
      faults_.push_back(page_floor(message.arg.pagefault.address));
    } else if (auto child = apply(message)) {
      forked.push_back(std::move(child));
    }
  }
  return forked;
}

std::unique_ptr<ServedMemory> ServedMemory::apply(const uffd_msg& event) {
  ++events_applied_;
  switch (event.event) {
    case UFFD_EVENT_FORK:
      return std::make_unique<ServedMemory>(Uffd(UniqueFd(static_cast<int>(event.arg.fork.ufd))),
                                            missing_);
    case UFFD_EVENT_REMAP:
      missing_.move(event.arg.remap.from, event.arg.remap.to, page_ceil(event.arg.remap.len));
      return nullptr;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      missing_.erase({event.arg.remove.start, event.arg.remove.end});
      return nullptr;
    default:
      return nullptr;
  }
}

FillResult ServedMemory::attempt(PageRange range, const Filling& filling) const {
  switch (filling.kind) {
    case Filling::Kind::kCopy:
      return uffd_.copy(range.start, filling.content.first(range.bytes()));
    case Filling::Kind::kZero:
      return uffd_.zero(range);
    default:
      return uffd_.poison(range);
  }
}

// Puts pages of one piece in place. On return with kDone none of them is lazy any more.
FillState ServedMemory::put(PageRange range, const Filling& filling) {
  uint64_t address = range.start;
  // 0: the whole range at once. A range across two mappings is refused whole, so after a refusal
  // pages are tried alone.
  int refusals = 0;
  while (address < range.end) {
    const uint64_t length = refusals == 0 ? range.end - address : kPageSize;
    Filling rest = filling;
    if (filling.kind == Filling::Kind::kCopy) {
      rest.content = filling.content.subspan(address - range.start);
    }
    const FillResult result = attempt({address, address + length}, rest);
    missing_.erase({address, address + result.bytes});
    address += result.bytes;
    if (result.bytes != 0) {
      refusals = std::min(refusals, 1);
      continue;  // what stopped it shows itself at the next page
    }
    switch (result.error) {
      case EEXIST:
        skip_page(address);
        break;
      case ENOENT:
      case EINVAL:
        // Not mapped, or not ours. An unmapping or move under way shows here before its event can
        // be read; but from then on the kernel answers EAGAIN until it was read. So a page that is
        // refused a second time is gone for good.
        if (++refusals <= 2) break;
        skip_page(address);
        refusals = 1;
        break;
      case EAGAIN:
      case ENOMEM:
        return FillState::kAgain;
      case ESRCH:
        return FillState::kGone;
      default:
        throw SysError("fill a page", result.error, {.pid = {}, .address = address, .path = {}});
    }
  }
  return FillState::kDone;
}

// The page needs nothing from us; whoever waits for it shall look again.
void ServedMemory::skip_page(uint64_t& address) {
  missing_.erase({address, address + kPageSize});
  uffd_.wake({address, address + kPageSize});
  address += kPageSize;
}

FillState ServedMemory::fill(uint64_t start, std::span<const uint8_t> content) {
  const uint64_t end = start + content.size();
  for (uint64_t address = start;;) {
    const std::optional<LazyPiece> piece = missing_.first_from(address);
    if (!piece || piece->start >= end) return FillState::kDone;
    const uint8_t* bytes = content.data() + (piece->start - start);
    const uint64_t limit = std::min(piece->end, end) - piece->start;
    const bool zero = all_zero(bytes);
    uint64_t length = kPageSize;
    while (length < limit && all_zero(bytes + length) == zero) length += kPageSize;
    const FillState state = put(
        {piece->start, piece->start + length},
        {.kind = zero ? Filling::Kind::kZero : Filling::Kind::kCopy, .content = {bytes, length}});
    if (state != FillState::kDone) return state;
    pages_filled_ += length / kPageSize;
    address = piece->start + length;
  }
}

FillState ServedMemory::fill_discarded(uint64_t page) {
  return put({page, page + kPageSize}, {.kind = Filling::Kind::kZero, .content = {}});
}

FillState ServedMemory::poison(PageRange range) {
  for (uint64_t address = range.start;;) {
    const std::optional<LazyPiece> piece = missing_.first_from(address);
    if (!piece || piece->start >= range.end) return FillState::kDone;
    const PageRange part{piece->start, std::min(piece->end, range.end)};
    const FillState state = put(part, {.kind = Filling::Kind::kPoison, .content = {}});
    if (state != FillState::kDone) return state;
    address = part.end;
  }
}

}  // namespace replpage
