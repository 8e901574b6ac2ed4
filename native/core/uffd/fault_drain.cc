// The background of a FaultServer: fetches what nobody has asked for yet.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/base/urgency.h"
#include "core/uffd/fault_server.h"

namespace replpage {
namespace {

// One read of the source: fits a processor's own cache, so that filling does not read memory again.
constexpr uint64_t kDrainBytes = 256 * 1024;
// Filled under one hold of the lock; bounds how long a fault waits for the drain (about 10 us).
constexpr uint64_t kFillBytes = 32 * 1024;
// Sorted at a time, and looked at for one chunk, under one hold of the lock.
constexpr size_t kPlanPieces = 2048;
constexpr size_t kLooksMax = 64;
// While the refill is held: faults alone may have fetched everything.
constexpr std::chrono::milliseconds kHeldLook{100};

}  // namespace

void FaultServer::wait_released() {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [this] { return stopping_ || released_us_ != 0; });
}

void FaultServer::hold_refill(bool held) {
  {
    const std::lock_guard lock(mutex_);
    refill_held_ = held;
  }
  released_.notify_all();
}

void FaultServer::drain(DrainRole role) {
  ::pthread_setname_np(::pthread_self(), "drain");
  // The program goes first, and so do its faults.
  run_after_others();
  bool hurries = false;
  if (role == DrainRole::kStoreOnly) wait_released();
  std::vector<uint8_t> buffer(kDrainBytes);
  try {
    while (!stopping_) {
      const std::optional<Chunk> chunk = next_chunk();
      if (!chunk) break;
      if (hurries != must_hurry(role)) {
        hurries = !hurries;
        hurries ? run_beside_others() : run_after_others();
      }
      drain_chunk(*chunk, buffer);
    }
  } catch (const std::exception& error) {
    return lose(error.what());
  }
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    last = --drains_ == 0;
  }
  if (last && !stopping_ && events_.drained) events_.drained();
}

// After the first answers: a process that waits to go keeps its locks and its parent waiting, and
// the OOM reaper may be after its memory.
bool FaultServer::must_hurry(DrainRole role) const {
  constexpr uint64_t kQuietUs = 50'000;
  if (role != DrainRole::kAll) return false;
  const std::lock_guard lock(mutex_);
  return released_us_ == 0 && now_us() - started_us_ > kQuietUs;
}

void FaultServer::drain_chunk(const Chunk& chunk, std::span<uint8_t> buffer) {
  if (chunk.pieces.empty()) return rest_a_while();
  const bool at_once = read_chunk(chunk, buffer);
  for (const LazyPiece& piece : chunk.pieces) {
    if (stopping_) return;
    const std::span<uint8_t> content = buffer.first(piece.bytes());
    if (!at_once) {
      drain_piece(chunk, piece, content);
    } else {
      if (!fill_piece(chunk, piece, content)) return;
      buffer = buffer.subspan(content.size());
    }
  }
}

bool FaultServer::read_chunk(const Chunk& chunk, std::span<uint8_t> buffer) {
  PageSource& source = source_of(chunk.pieces.front().from);
  std::vector<PagesWanted> wanted;
  for (const LazyPiece& piece : chunk.pieces) {
    wanted.push_back({.position = piece.from.position, .into = buffer.first(piece.bytes())});
    buffer = buffer.subspan(piece.bytes());
  }
  source.expect(wanted.front().position);
  source.expect(wanted.back().position);
  return source.read_many(wanted);
}

void FaultServer::drain_piece(const Chunk& chunk, const LazyPiece& piece,
                              std::span<uint8_t> content) {
  try {
    source_of(piece.from).read(piece.from.position, content);
  } catch (const PageDamaged& error) {
    // What an event holds up comes up again.
    (void)damage(*chunk.memory, piece, error.what());
    return;
  }
  (void)fill_piece(chunk, piece, content);
}

bool FaultServer::all_released() const {
  return std::all_of(memories_.begin(), memories_.end(),
                     [](const auto& memory) { return memory->missing().passing().empty(); });
}

// A process that waits to go comes first. nullopt: nothing is missing any more, and every
// userfaultfd is closed.
std::optional<FaultServer::Chunk> FaultServer::next_chunk() {
  std::unique_lock lock(mutex_);
  retire_finished();
  const bool released = all_released();
  const uint64_t passed_us = std::max<uint64_t>(1, now_us() - started_us_);
  if (released && released_us_ == 0) {
    released_us_ = passed_us;
    run_anywhere(serving_.native_handle());
    released_.notify_all();
    lock.unlock();
    if (events_.released) events_.released();
    lock.lock();
  }
  if (memories_.empty()) {
    if (drained_us_ == 0) drained_us_ = passed_us;
    return std::nullopt;
  }
  if (released && refill_held_) {
    released_.wait_for(lock, kHeldLook, [this] { return stopping_ || !refill_held_; });
    return Chunk{};
  }
  return released ? claim_stored() : claim_passing();
}

// The caller holds the lock, as for those below. Empty: of another thread's doing, meanwhile.
FaultServer::Chunk FaultServer::claim_passing() {
  const auto memory = std::find_if(memories_.begin(), memories_.end(), [](const auto& one) {
    return !one->missing().passing().empty();
  });
  if (memory == memories_.end()) return {};
  const LazyRanges& ranges = (*memory)->missing().passing();
  std::optional<LazyPiece> piece = ranges.first_from(cursor_);
  if (!piece) piece = ranges.first_from(0);
  piece->end = std::min(piece->end, piece->start + kDrainBytes);
  cursor_ = piece->end;
  return {.memory = *memory, .pieces = {*piece}};
}

// What was planned may have come in by a fault, or be gone.
FaultServer::Chunk FaultServer::claim_stored() {
  if (plan_.next == plan_.pieces.size() && !make_plan()) return {};
  Chunk chunk{.memory = plan_.memory, .pieces = {}};
  uint64_t bytes = 0;
  for (size_t looks = 0; looks < kLooksMax && plan_.next < plan_.pieces.size(); ++looks) {
    const LazyPiece& planned = plan_.pieces[plan_.next];
    std::optional<LazyPiece> piece = plan_.memory->missing().stored().at(planned.start);
    if (piece && piece->from == planned.from) {
      piece->end = std::min(piece->end, piece->start + kDrainBytes);
      if (bytes + piece->bytes() > kDrainBytes) break;
      bytes += piece->bytes();
      chunk.pieces.push_back(*piece);
    }
    ++plan_.next;
  }
  return chunk;
}

// False: nothing is left.
bool FaultServer::make_plan() {
  const auto memory = std::find_if(memories_.begin(), memories_.end(), [](const auto& one) {
    return !one->missing().stored().empty();
  });
  if (memory == memories_.end()) return false;
  plan_.memory = *memory;
  plan_.pieces.clear();
  plan_.next = 0;
  const LazyRanges& ranges = (*memory)->missing().stored();
  ranges.list_from(cursor_, kPlanPieces, plan_.pieces);
  if (plan_.pieces.empty()) ranges.list_from(0, kPlanPieces, plan_.pieces);
  cursor_ = plan_.pieces.back().end;
  std::sort(plan_.pieces.begin(), plan_.pieces.end(), [](const LazyPiece& a, const LazyPiece& b) {
    return a.from.position < b.from.position;
  });
  return true;
}

void FaultServer::retire_finished() {
  const size_t before = memories_.size();
  std::erase_if(memories_, [this](const std::shared_ptr<ServedMemory>& memory) {
    if (!memory->missing().empty()) return false;
    pages_filled_ += memory->pages_filled();
    memory->close();
    return true;
  });
  // The serving thread's poll keeps a closed file alive until it returns.
  if (memories_.size() != before) wake();
}

// False: the address space has ended.
bool FaultServer::fill_piece(const Chunk& chunk, const LazyPiece& piece,
                             std::span<const uint8_t> content) {
  int tries = 0;
  for (uint64_t at = 0; at < content.size();) {
    const uint64_t length = std::min<uint64_t>(kFillBytes, content.size() - at);
    LazyPiece part{.start = piece.start + at, .end = 0, .from = piece.from.after(at)};
    part.end = part.start + length;
    while (precedence_.load() != 0) ::sched_yield();
    {
      const std::lock_guard lock(mutex_);
      ServedMemory& memory = *chunk.memory;
      if (!memory.uffd().valid()) return false;
      const FillState state = fill_unchanged(memory, part, content.subspan(at, length));
      if (state == FillState::kGone) {
        forget(memory);
        return false;
      }
      if (state == FillState::kDone) {
        at += length;
        tries = 0;
        continue;
      }
    }
    if (stopping_) return false;
    if (++tries == kRetriesMax) throw SysError("fill pages in the background", ENOMEM);
    rest_a_while();
  }
  return true;
}

// Only what still comes from there: the program may have moved or discarded it meanwhile.
FillState FaultServer::fill_unchanged(ServedMemory& memory, const LazyPiece& piece,
                                      std::span<const uint8_t> content) {
  for (uint64_t address = piece.start;;) {
    const std::optional<LazyPiece> now = memory.missing().first_from(address);
    if (!now || now->start >= piece.end) return FillState::kDone;
    const uint64_t end = std::min(now->end, piece.end), offset = now->start - piece.start;
    if (now->from == piece.from.after(offset)) {
      const FillState state = memory.fill(now->start, content.subspan(offset, end - now->start));
      if (state != FillState::kDone) return state;
    }
    address = end;
  }
}

}  // namespace replpage
