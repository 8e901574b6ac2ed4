// What paging of a group's replicas is asked for, and what it reports.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/access/access_tracker.h"
#include "core/paging/page_table.h"

namespace replpage {

struct PagingOptions {
  std::string pager_path;  // the executable
  std::string store;       // directory of the page store
  bool must_open = false;  // a store that cannot be opened makes start() fail
  bool as_owner = false;   // it is opened with the rights of the group's owner
  std::string key_path;    // of the store's key; empty: pages are not encrypted
  uint64_t group_id = 0;   // random, of this protection
  uint64_t store_bytes_max = UINT64_MAX;
  bool allow_memory_file_systems = false;  // for tests
  uint32_t segment_bytes_max = 0;          // for tests; 0: the usual
  uint64_t cold_after_us = 30'000'000;
  std::optional<AccessTrackerKind> tracker;
};

// What the policy wants done until it asks again.
struct PagingOrder {
  uint8_t evict_age = 0;         // samples since the last touch, at least
  uint64_t evict_pages_max = 0;  // 0: none
  uint8_t bring_back_age = 0;    // samples, at most
  uint64_t bring_back_pages_max = 0;
  bool sample_now = false;  // whether or not it is due
};

enum class StoreState : uint8_t { kOpening, kOk, kFull, kHung, kFailing };

struct PagingReport {
  std::string tracker;
  uint64_t samples = 0, sample_us = 0, period_us = 0;  // taken, cost of the last, between two
  double sample_share = 0;                             // of one processor
  uint64_t resident_bytes = 0, cold_bytes = 0, absent_bytes = 0, pending_bytes = 0;
  uint64_t candidate_bytes = 0;
  std::vector<uint64_t> ages;           // candidates by samples since the last touch
  std::vector<uint64_t> touched_again;  // cold pages likewise
  uint64_t table_bytes = 0;
  StoreState store = StoreState::kOpening;
  std::string trouble;  // of the store; empty: none
  uint64_t store_bytes = 0, store_segments = 0;
  uint64_t written_bytes = 0, evicted_bytes = 0, brought_back_bytes = 0;  // since the start
  uint64_t moved_bytes = 0;  // likewise: written anew to empty sparse segments
  uint64_t pager_cpu_us = 0;
  int32_t pager_pid = 0;
};

// What `replpage inspect` shows of one mapping; see PageTable::describe.
struct InspectedMapping {
  int32_t pid = 0;
  PageRange range;
  bool is_stack = false;
  std::string name;  // PR_SET_VMA_ANON_NAME
  std::vector<PageCounts> cells;
};

}  // namespace replpage
