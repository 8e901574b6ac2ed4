// Reads one checkpoint. Nothing here touches the store itself: a pager does, which can be killed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "core/base/caller_rights.h"
#include "core/channel/pager_messages.h"
#include "core/checkpoint/checkpoint_state.h"
#include "core/link/pager_process.h"
#include "core/store/checkpoint_manifest.h"
#include "core/store/store_key.h"

namespace replpage {

struct CheckpointPlace {
  std::string pager_path;                  // the executable
  std::string store;                       // directory
  std::string name;                        // of the group in it
  std::string id;                          // empty: the newest
  std::string key_path;                    // of the store's key
  std::string key_text;                    // instead, as StoreKey::text(); empty: none
  std::optional<CallerRights> rights;      // that the store is opened with; none: ours
  bool allow_memory_file_systems = false;  // for tests
};

// The pager that reads one checkpoint. For one thread.
class CheckpointReader {
 public:
  // Throws StoreError (also once `stop` is asked for, here as below), SysError (the key).
  explicit CheckpointReader(const CheckpointPlace& place, std::stop_token stop = {});
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  [[nodiscard]] const std::string& id() const { return id_; }
  [[nodiscard]] const CheckpointManifest& manifest() const { return manifest_; }
  [[nodiscard]] int directory() const { return directory_.get(); }
  [[nodiscard]] const StoreKey& key() const { return key_; }

  // Checked. Throws StoreError, StoreDamaged.
  CheckpointState read_state();
  // The pages of the runs one behind the other; valid until the next call. At most kFetchBytesMax.
  std::span<const uint8_t> fetch(std::span<const PageRun> runs);
  static constexpr uint64_t kFetchBytesMax = 2u << 20;

 private:
  ReceivedMessage ask(PagerMessageType type, Bytes body, std::span<const int> descriptors = {});
  void fetch_into_target(std::vector<PagerFetchRun> runs);

  std::stop_token stop_;
  StoreKey key_;
  PagerProcess pager_;
  UniqueFd target_;
  uint8_t* room_ = nullptr;
  uint64_t tickets_ = 0;
  std::string id_;
  CheckpointManifest manifest_;
  UniqueFd directory_;
};

}  // namespace replpage
