// A victim with an area of memory, its capture, and a model replica that must have what it has.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "test/memory_victim.h"
#include "test/test.h"

namespace replpage::testing {

// Used inside the victim only.
inline char* area = nullptr;
inline constexpr size_t kAreaPages = 2048;

inline uint64_t make_area(uint64_t pages) {
  constexpr uint64_t kHuge = 2u << 20;
  const uint64_t bytes = pages * kPageSize;
  auto* at = static_cast<char*>(::mmap(nullptr, bytes + 2 * kHuge, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  const auto aligned = (reinterpret_cast<uint64_t>(at) + kHuge - 1) & ~(kHuge - 1);
  ::munmap(at, bytes + 2 * kHuge);
  area = static_cast<char*>(::mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  ::madvise(area, bytes, MADV_NOHUGEPAGE);
  return reinterpret_cast<uint64_t>(area);
}

inline uint64_t fill(uint64_t seed) {
  for (size_t i = 0; i < kAreaPages; ++i) {
    std::memset(area + i * kPageSize, static_cast<int>(seed + i) | 1, kPageSize);
  }
  return 0;
}

struct MemoryFixture {
  MemoryFixture() {
    const TrackerKind tracker = usual_tracker();
    address = victim.run(make_area, kAreaPages);
    victim.run(fill, 1);
    memory = MemoryCapture::create(victim.pid(), 7, tracker, victim.injector());
    round();
    // Reading gives the victim frames of its own for what it shares with its parent: those pages
    // count once more.
    if (tracker == TrackerKind::kSoftDirty) round();
  }

  CopyRound round() {
    const Pause pause(victim, *memory);
    const auto mappings = victim.map();
    replica.shape(mappings);
    memory->track(mappings);
    const CopyRound result = memory->copy_changed(mappings, replica);
    const std::string difference = replica.difference(victim.pid(), mappings);
    if (!difference.empty()) note(difference);
    CHECK_EQUAL(difference, std::string());
    CHECK(!result.process_gone);
    return result;
  }
  // Lets the victim act, then looks. The victim's own stack, heap and command loop cost a few
  // pages.
  CopyRound after(uint64_t (*function)(uint64_t), uint64_t argument = 0) {
    victim.run(function, argument);
    return round();
  }

  MemoryVictim victim;
  ModelReplica replica;
  std::unique_ptr<MemoryCapture> memory;
  uint64_t address = 0;
};

inline constexpr uint64_t kOwnPages = 12;

inline bool soft_dirty(const MemoryFixture& f) {
  return f.memory->tracker() == TrackerKind::kSoftDirty;
}

}  // namespace replpage::testing
