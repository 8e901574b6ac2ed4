// Brings a checkpoint back: a keeper builds the replica and promotes it at once; what need not be
// there comes from the store when it is touched. Nothing here touches the store itself: a pager
// reads it, which can be killed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/caller_rights.h"
#include "core/capture/checkpoint_state.h"
#include "core/capture/group_types.h"
#include "core/capture/pager_process.h"
#include "core/channel/pager_messages.h"
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
  // Throws StoreError, SysError (the key).
  explicit CheckpointReader(const CheckpointPlace& place);
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

  StoreKey key_;
  PagerProcess pager_;
  UniqueFd target_;
  uint8_t* room_ = nullptr;
  uint64_t tickets_ = 0;
  std::string id_;
  CheckpointManifest manifest_;
  UniqueFd directory_;
};

struct RestoreOptions {
  CheckpointPlace place;
  std::string name;  // of the group that it becomes
  uint64_t generation = 1;
  std::string keeper_path;
  std::string control_socket;
  std::string spill_directory;
  std::string stdio_path;  // empty: /dev/null
  uid_t uid = 0;           // opens stdio_path
  gid_t gid = 0;
  std::vector<gid_t> groups;
  bool keep_files = false;
  uint64_t staging_bytes_max = 256ull << 20;
  uint64_t spill_bytes_max = 64ull << 30;
};

// Returns when it runs. Throws StoreError, SysError, KeeperLost with the keeper's reason,
// FormatError; nothing runs then.
PromotionReport restore_checkpoint(const RestoreOptions& options);

}  // namespace replpage
