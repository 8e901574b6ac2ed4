// Messages between a group's tracer (in the daemon) and its keeper.
//
// One SOCK_SEQPACKET connection; each packet is a MessageHeader and a body, descriptors travel as
// SCM_RIGHTS of the same packet (at most kDescriptorsMax). Page content never travels in packets:
// it lies in the staging area, a memfd followed by a spill file in one offset space.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"
#include "core/base/clock_offsets.h"
#include "core/memory/memory_capture.h"
#include "core/memory/page_run.h"

namespace replpage {

inline constexpr uint32_t kMessageMagic = 0x4B505052;  // "RPPK"
inline constexpr uint16_t kMessageVersion = 1;
inline constexpr uint32_t kMessageBytesMax = 128 * 1024;
inline constexpr size_t kDescriptorsMax = 200;

enum class MessageType : uint16_t {
  // tracer -> keeper
  kConfigure = 1,  // ConfigureMessage + descriptors as listed there; sent by spawn_keeper
  kBuild = 2,      // ImageMessage: shape the replica; nothing is committed yet
  kPages = 3,      // PagesMessage: apply at once (before the first commit), then kPagesDone
  kStage = 4,      // PagesMessage: keep until the commit
  kCommit = 5,     // ImageMessage: apply everything staged; then kCommitted
  // 6 and 9 had a meaning once
  kDescriptors = 7,  // DescriptorsMessage + descriptors, before kPromote
  kPromote = 8,      // PromoteMessage: apply its pages, then run
  kDying = 10,       // empty: kPromote is next, of the last commit or one epoch later
  kLastState = 11,   // ImageMessage: what kPromote of this epoch will say, ahead of its pages
  kStore = 12,       // StoreMessage + the directory of the generation's segments, before kCold runs
  kLook = 13,        // empty: show the replica's memory, then kView
  kFiles = 14,       // FilesMessage: files here of a primary elsewhere, before kBuild; kFilesReady
  kRehearse = 15,    // empty: could the last commit run here? kRehearsed
  kDrill = 16,       // DrillMessage: the last commit is tried out, then kDrilled, and it is over
  kHash = 17,        // HashMessage: between two epochs, then kHashes
  // keeper -> tracer
  kReady = 32,       // ReadyMessage + a pidfd of the keeper
  kPagesDone = 33,   // empty: the chunk's room in the staging area is free again
  kCommitted = 34,   // CommittedMessage
  kPromoted = 35,    // PromotedMessage
  kDrained = 36,     // DrainedMessage: nothing is read from the dying process any more
  kFailed = 37,      // FailedMessage: the replica is lost (before promotion) or promotion failed
  kBuilt = 38,       // empty
  kView = 39,        // ViewMessage + descriptors as listed there
  kDraining = 40,    // DrainingMessage: now and then between kPromoted and kDrained
  kFilesReady = 41,  // FilesReadyMessage
  kRehearsed = 42,   // RehearsedMessage
  kDrilled = 43,     // DrilledMessage
  kHashes = 44,      // HashesMessage
};

struct MessageHeader {
  uint32_t magic = kMessageMagic;
  uint16_t version = kMessageVersion;
  MessageType type{};
  uint32_t body_bytes = 0;
  uint32_t body_crc = 0;    // CRC32C
  uint32_t header_crc = 0;  // CRC32C of the bytes before it
  uint32_t reserved = 0;    // zero
};
static_assert(sizeof(MessageHeader) == 24);

// Descriptors of the packet, in this order: staging memfd; spill file if spill_bytes_max is not 0;
// where outside streams lead if stdio_path is not empty; pidfd of namespaces_of if that is not 0.
struct ConfigureMessage {
  std::string name;
  uint64_t generation = 0;
  uint64_t staging_bytes = 0;  // of the memfd; offsets beyond it lie in the spill file
  uint64_t spill_bytes_max = 0;
  std::string control_socket;  // path the keeper listens on, answers "status\n" with one JSON line
  std::string stdio_path;  // opened by the tracer, descriptor travels with the message; empty: null
  int32_t namespaces_of = 0;  // host pid whose mount, net, ipc, uts namespaces were entered
  PrimaryClocks clocks = {};
  std::string service_address;  // to be taken at the promotion; empty: none
  bool drill = false;           // never to be promoted, but tried out: cut off from the network
  template <class A>
  void visit(A& a) {
    a(name, generation, staging_bytes, spill_bytes_max, control_socket, stdio_path, namespaces_of,
      clocks, service_address, drill);
  }
};

struct ReadyMessage {
  int32_t holder_pid = 0, keeper_pid = 0;  // as the daemon sees them
  std::vector<std::string> notes;          // what could not be had, and why
  template <class A>
  void visit(A& a) {
    a(holder_pid, keeper_pid, notes);
  }
};

// Position of an encoded structure in the staging area. Length 0: there is none.
struct StagedBytes {
  uint64_t offset = 0, length = 0;
  uint32_t crc = 0;  // CRC32C
  template <class A>
  void visit(A& a) {
    a(offset, length, crc);
  }
};

// How the keeper reads cold pages, without any daemon.
struct StoreMessage {
  Bytes key;         // of the page store; empty: pages are not encrypted
  std::string path;  // of the store, for messages only
  std::string name;  // directory of the group
  uint64_t group_id = 0, generation = 0;
  template <class A>
  void visit(A& a) {
    a(key, path, name, group_id, generation);
  }
};

struct ImageMessage {
  uint64_t epoch = 0;
  StagedBytes image;  // encoded GroupImage
  template <class A>
  void visit(A& a) {
    a(epoch, image);
  }
};

struct PagesMessage {
  uint64_t epoch = 0;
  StagedBytes runs;  // encoded std::vector<PageRun> wrapped in PageRunList
  template <class A>
  void visit(A& a) {
    a(epoch, runs);
  }
};

struct PageRunList {
  std::vector<PageRun> runs;
  template <class A>
  void visit(A& a) {
    a(runs);
  }
};

// Those of another epoch than kPromote names are dropped.
struct DescriptorsMessage {
  uint64_t epoch = 0;
  std::vector<uint32_t> positions;   // in GroupImage::open_files, one per descriptor of the packet
  std::vector<int32_t> memory_pids;  // for trailing descriptors: /proc/PID/mem of these group pids
  template <class A>
  void visit(A& a) {
    a(epoch, positions, memory_pids);
  }
};

struct PromoteMessage {
  uint64_t epoch = 0;  // of the last commit, or of the last state
  bool exact = false;
  bool keep_files = false;
  StagedBytes runs;  // encoded PageRunList: the pages of the last state; none for the last commit
  StagedBytes lazy;  // encoded LazyRangeList
  template <class A>
  void visit(A& a) {
    a(epoch, exact, keep_files, runs, lazy);
  }
};

struct LazyRangeList {
  std::vector<LazyRange> ranges;
  template <class A>
  void visit(A& a) {
    a(ranges);
  }
};

// The memory of a replica that stands by: /proc/PID/mem and /proc/PID/pagemap of each of `pids`,
// then a memfd of each of `objects`. Good until the next kCommit.
struct ViewMessage {
  std::vector<int32_t> pids;
  std::vector<uint32_t> objects;  // SharedObjectImage::id
  bool last = true;               // false: another one follows
  template <class A>
  void visit(A& a) {
    a(pids, objects, last);
  }
};

// A file that a primary on another machine uses, and that this one has, or has a copy of.
struct PeerFile {
  std::string path;         // both here and there
  std::string copy;         // path here of what was shipped; empty: the file here will do
  uint64_t inode = 0;       // there, as the image names it
  bool on_network = false;  // one file system on both machines, whose times tell
  bool written = false;     // it was compared as one that the primary writes to
  template <class A>
  void visit(A& a) {
    a(path, copy, inode, on_network, written);
  }
};

// As many as a message takes; others follow in further ones.
struct FilesMessage {
  std::vector<PeerFile> files;
  bool keep_files = false;  // data files need not be the same ones
  template <class A>
  void visit(A& a) {
    a(files, keep_files);
  }
};

// Empty files and directories that had to be made for copies to appear at their paths, in the order
// in which they were made: to be removed when the replica has ended.
struct FilesReadyMessage {
  std::vector<std::string> made;
  template <class A>
  void visit(A& a) {
    a(made);
  }
};

struct RehearsedMessage {
  std::string problem;  // why it could not run here; empty: it could, as far as can be seen
  template <class A>
  void visit(A& a) {
    a(problem);
  }
};

// Of at most kHashPagesMax pages that lie side by side.
inline constexpr uint32_t kHashPagesMax = 512;
struct HashMessage {
  int32_t pid = 0;  // in the group's PID namespace
  uint64_t start = 0;
  uint32_t pages = 0;
  template <class A>
  void visit(A& a) {
    a(pid, start, pages);
  }
};

struct HashesMessage {
  std::vector<uint32_t> hashes;  // CRC32C of each page; none: some of them are in the page store
  template <class A>
  void visit(A& a) {
    a(hashes);
  }
};

struct DrillMessage {
  uint64_t run_us = 0;  // at most
  template <class A>
  void visit(A& a) {
    a(run_us);
  }
};

// What came of a drill. `calls` of `threads` got to a system call, which is not executed.
struct DrilledMessage {
  std::string problem;  // empty: it would run
  uint64_t promote_us = 0;
  uint32_t threads = 0, calls = 0;
  template <class A>
  void visit(A& a) {
    a(problem, promote_us, threads, calls);
  }
};

struct CommittedMessage {
  uint64_t epoch = 0, apply_us = 0, resident_bytes = 0, cold_bytes = 0;
  template <class A>
  void visit(A& a) {
    a(epoch, apply_us, resident_bytes, cold_bytes);
  }
};

struct PromotedMessage {
  uint64_t epoch = 0, promote_us = 0;
  uint64_t ran_us = 0;  // when all was let run, by CLOCK_MONOTONIC, which is that of the machine
  int32_t pid = 0;      // as the program sees it
  int32_t host_pid =
      0;  // as the daemon sees it (SCM_CREDENTIALS or NSpid, filled by the receiver if 0)
  template <class A>
  void visit(A& a) {
    a(epoch, promote_us, ran_us, pid, host_pid);
  }
};

struct DrainedMessage {
  uint64_t pages = 0, took_us = 0;
  template <class A>
  void visit(A& a) {
    a(pages, took_us);
  }
};

struct DrainingMessage {
  uint64_t pages = 0;  // filled so far
  template <class A>
  void visit(A& a) {
    a(pages);
  }
};

struct FailedMessage {
  std::string reason;
  int32_t error = 0;
  template <class A>
  void visit(A& a) {
    a(reason, error);
  }
};

}  // namespace replpage
