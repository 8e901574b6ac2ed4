// Messages between a group's worker thread (in the daemon) and its pager, which writes cold pages
// to the page store.
//
// The packets are those of Channel, with types of their own. Page content never travels in them:
// the pager reads it from descriptors that it was sent (/proc/PID/mem, a staging memfd).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/base/page.h"
#include "core/channel/messages.h"
#include "core/store/store_error.h"

namespace replpage {

enum class PagerMessageType : uint16_t {
  // worker -> pager
  kConfigure = 1,     // PagerConfigureMessage; then kOpened or kFailed (with ticket 0)
  kSource = 2,        // PagerSourceMessage + one descriptor; no answer
  kForgetSource = 3,  // PagerSourceMessage; no answer
  kWrite = 4,         // PagerWriteMessage; then kWritten or kFailed
  kDrop = 5,          // PagerDropMessage; then kDone or kFailed
  kRemove = 6,        // PagerRemoveMessage; then kDone or kFailed
  kUsage = 7,         // PagerTicket; then kDone or kFailed
  kProbe = 8,         // PagerProbeMessage; then kDone or kFailed
  kCheckpoint = 9,    // PagerCheckpointMessage; then kDone or kFailed
  kFind = 10,         // PagerFindMessage, instead of kConfigure; then kFound or kFailed (ticket 0)
  kFetch = 11,        // PagerFetchMessage, after kFound; then kDone or kFailed
  kRemoveFound = 12,  // PagerFindMessage, instead of kConfigure; then kDone or kFailed (ticket 0)
  // pager -> worker
  kOpened = 32,   // PagerDoneMessage + the directory of the generation
  kWritten = 33,  // PagerWrittenMessage
  kFailed = 34,   // PagerFailedMessage; the pager goes on serving
  kDone = 35,     // PagerDoneMessage
  kFound = 36,    // PagerFoundMessage + the directory of the checkpoint
};

// On the wire of a Channel, which knows the keeper's types by number only.
constexpr MessageType on_wire(PagerMessageType type) { return static_cast<MessageType>(type); }
constexpr PagerMessageType pager_type(MessageType type) {
  return static_cast<PagerMessageType>(type);
}

struct PagerConfigureMessage {
  std::string store;  // path of the directory
  std::string group;
  uint64_t group_id = 0;
  uint64_t generation = 0;
  uint64_t writer = 0;         // random, one for all pagers that follow each other
  uint32_t first_segment = 1;  // no number below it is used
  Bytes key;                   // of the page store, 32 bytes; empty: nothing is encrypted
  bool compress = true;
  uint64_t bytes_max = UINT64_MAX;
  uint32_t segment_bytes_max = 0;  // 0: the usual
  bool as_owner = false;           // runs on with the ids below
  uint32_t uid = 0, gid = 0;
  std::vector<uint32_t> groups;
  bool allow_memory_file_systems = false;  // for tests
  template <class A>
  void visit(A& a) {
    a(store, group, group_id, generation, writer, first_segment, key, compress, bytes_max,
      segment_bytes_max, as_owner, uid, gid, groups, allow_memory_file_systems);
  }
};

struct PagerSourceMessage {
  uint32_t source = 0;
  template <class A>
  void visit(A& a) {
    a(source);
  }
};

// Pages to write, and where their content is now.
struct PagerRun {
  uint64_t address = 0;  // in the process
  uint64_t offset = 0;   // in the source; of /proc/PID/mem the address
  int32_t pid = 0;       // in the group's own PID namespace
  uint32_t source = 0;
  uint32_t pages = 0;
  uint32_t reserved = 0;  // zero
};

// So that a batch and its answer each fit a packet.
inline constexpr size_t kPagerRunsMax = 3500;
inline constexpr uint32_t kPagerPagesMax = 4096;

struct PagerWriteMessage {
  uint64_t ticket = 0;
  uint64_t epoch = 0;
  std::vector<PagerRun> runs;  // at most kPagerRunsMax with kPagerPagesMax pages
  template <class A>
  void visit(A& a) {
    a(ticket, epoch, runs);
  }
};

// A record that is durable.
struct PagerWrittenRun {
  uint64_t location = 0;  // of the first page; add kPageSize for each further one
  uint64_t address = 0;
  int32_t pid = 0;
  uint32_t pages = 0;
};
static_assert(sizeof(PagerWrittenRun) * kPagerPagesMax + 256 < kMessageBytesMax);
static_assert(sizeof(PagerRun) * kPagerRunsMax + 256 < kMessageBytesMax);

struct PagerUsage {
  uint64_t bytes = 0;         // of all generations of the group, on disk
  uint64_t segments = 0;      // likewise
  uint32_t next_segment = 1;  // of this generation
  template <class A>
  void visit(A& a) {
    a(bytes, segments, next_segment);
  }
};

struct PagerWrittenMessage {
  uint64_t ticket = 0;
  uint64_t epoch = 0;
  std::vector<PagerWrittenRun> runs;  // what is asked for and not here was zero or not readable
  uint32_t zero_pages = 0, unreadable_pages = 0;
  PagerUsage usage;
  uint64_t cpu_us = 0, took_us = 0;
  template <class A>
  void visit(A& a) {
    a(ticket, epoch, runs, zero_pages, unreadable_pages, usage, cpu_us, took_us);
  }
};

struct PagerTicket {
  uint64_t ticket = 0;
  template <class A>
  void visit(A& a) {
    a(ticket);
  }
};

struct PagerDropMessage {
  uint64_t ticket = 0;
  std::vector<uint32_t> segments;  // of this generation; those that are not there are no error
  template <class A>
  void visit(A& a) {
    a(ticket, segments);
  }
};

// Removes a generation of this group; after its own the pager writes nothing more.
struct PagerRemoveMessage {
  uint64_t ticket = 0;
  uint64_t generation = 0;
  template <class A>
  void visit(A& a) {
    a(ticket, generation);
  }
};

enum class PagerProbe : uint8_t { kWrite = 1, kCheck = 2, kRemove = 3 };

struct PagerProbeMessage {
  uint64_t ticket = 0;
  uint64_t nonce = 0;
  PagerProbe step{};
  template <class A>
  void visit(A& a) {
    a(ticket, nonce, step);
  }
};

// Writes the state behind what is in the segments, and with it makes a checkpoint.
struct PagerCheckpointMessage {
  uint64_t ticket = 0;
  Bytes manifest;       // encoded CheckpointManifest, without `state` and its segments
  uint32_t source = 0;  // manifest.state_bytes of encoded CheckpointState
  bool keep = false;    // earlier checkpoints of the group stay
  template <class A>
  void visit(A& a) {
    a(ticket, manifest, source, keep);
  }
};

struct PagerFindMessage {
  PagerConfigureMessage store;  // which group's, and with whose rights; opened for reading
  std::string id;               // empty: the newest; for kRemoveFound: all
  template <class A>
  void visit(A& a) {
    a(store, id);
  }
};

struct PagerFoundMessage {
  std::string id;
  Bytes manifest;  // encoded CheckpointManifest
  template <class A>
  void visit(A& a) {
    a(id, manifest);
  }
};

// Pages that follow each other in one record, and where their content goes in the target.
struct PagerFetchRun {
  uint64_t location = 0;
  uint64_t offset = 0;  // bytes
  uint32_t pages = 0;
  uint32_t reserved = 0;  // zero
};

struct PagerFetchMessage {
  uint64_t ticket = 0;
  uint32_t source = 0;  // a file to write to
  std::vector<PagerFetchRun> runs;
  template <class A>
  void visit(A& a) {
    a(ticket, source, runs);
  }
};
inline constexpr size_t kPagerFetchMax = 4096;
static_assert(sizeof(PagerFetchRun) * kPagerFetchMax + 256 < kMessageBytesMax);

struct PagerDoneMessage {
  uint64_t ticket = 0;
  bool found = false;  // the answer to PagerProbe::kCheck
  PagerUsage usage;
  std::string id;      // of the checkpoint that was made; of those removed, by spaces
  uint64_t bytes = 0;  // of all segments that it keeps; that were freed
  template <class A>
  void visit(A& a) {
    a(ticket, found, usage, id, bytes);
  }
};

struct PagerFailedMessage {
  uint64_t ticket = 0;  // 0: kConfigure
  StoreFailure kind = StoreFailure::kIo;
  int32_t error = 0;  // errno, 0 where there is none
  std::string reason;
  template <class A>
  void visit(A& a) {
    a(ticket, kind, error, reason);
  }
};

}  // namespace replpage
