// The background of a FaultServer: fetches what nobody has asked for yet.
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "core/base/clock.h"
#include "core/base/sys_error.h"
#include "core/uffd/fault_server.h"

namespace replpage {
namespace {

// One read of the source: fits a processor's own cache, so that filling does not read memory again.
constexpr uint64_t kDrainBytes = 256 * 1024;
// Filled under one hold of the lock; bounds how long a fault waits for the drain (about 10 us).
constexpr uint64_t kFillBytes = 32 * 1024;
// A tenth of what a thread of the program gets, where processors are short.
constexpr int kNiceOfRefill = 10;
// While the refill is held: faults alone may have fetched everything.
constexpr std::chrono::milliseconds kHeldLook{100};

}  // namespace

void FaultServer::wait_released() {
  std::unique_lock lock(mutex_);
  released_.wait(lock, [this] { return stopping_ || released_us_ != 0; });
}

// Nobody waits for what the page store still has: the program goes first, and so do its faults.
void FaultServer::give_way() {
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), kNiceOfRefill);
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
  if (role == DrainRole::kStoreOnly) {
    wait_released();
    give_way();
  }
  std::vector<uint8_t> buffer(kDrainBytes);
  try {
    while (!stopping_) {
      const std::optional<Chunk> chunk = next_chunk();
      if (!chunk) break;
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

void FaultServer::drain_chunk(const Chunk& chunk, std::span<uint8_t> buffer) {
  if (!chunk.memory) return rest_a_while();
  const std::span<uint8_t> content = buffer.first(chunk.piece.bytes());
  try {
    PageSource& source = source_of(chunk.piece.from);
    source.expect(chunk.piece.from.position);
    source.read(chunk.piece.from.position, content);
  } catch (const PageDamaged& error) {
    // What an event holds up comes up again.
    (void)damage(*chunk.memory, chunk.piece, error.what());
    return;
  }
  for (uint64_t at = 0; at < content.size() && !stopping_; at += kFillBytes) {
    const uint64_t length = std::min<uint64_t>(kFillBytes, content.size() - at);
    if (!fill_piece(chunk, at, content.subspan(at, length))) break;
  }
}

bool FaultServer::all_released() const {
  return std::all_of(memories_.begin(), memories_.end(),
                     [](const auto& memory) { return memory->missing().passing().empty(); });
}

std::optional<LazyPiece> FaultServer::next_piece(const ServedMemory& memory, bool passing) const {
  const LazyRanges& ranges = passing ? memory.missing().passing() : memory.missing().stored();
  const std::optional<LazyPiece> piece = ranges.first_from(cursor_);
  return piece ? piece : ranges.first_from(0);
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
    give_way();
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
  const auto memory = std::find_if(memories_.begin(), memories_.end(), [&](const auto& one) {
    return released || !one->missing().passing().empty();
  });
  if (memory == memories_.end()) return Chunk{};  // of another thread's doing, meanwhile
  std::optional<LazyPiece> piece = next_piece(**memory, !released);
  if (!piece) return Chunk{};
  Chunk chunk{.memory = *memory, .piece = *piece, .events_applied = (*memory)->events_applied()};
  chunk.piece.end = std::min(piece->end, piece->start + kDrainBytes);
  cursor_ = chunk.piece.end;
  return chunk;
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

// False: the rest of the chunk is stale.
bool FaultServer::fill_piece(const Chunk& chunk, uint64_t offset,
                             std::span<const uint8_t> content) {
  for (int tries = 0; tries < kRetriesMax; ++tries) {
    while (precedence_.load() != 0) ::sched_yield();
    {
      const std::lock_guard lock(mutex_);
      ServedMemory& memory = *chunk.memory;
      if (!memory.uffd().valid() || memory.events_applied() != chunk.events_applied) return false;
      const FillState state = memory.fill(chunk.piece.start + offset, content);
      if (state == FillState::kDone) return true;
      if (state == FillState::kGone) {
        forget(memory);
        return false;
      }
    }
    if (stopping_) return false;
    rest_a_while();
  }
  throw SysError("fill pages in the background", ENOMEM);
}

}  // namespace replpage
