// The pager's work on checkpoints: makes one, or reads one for a restore.
#pragma once

#include <memory>
#include <optional>

#include "core/base/unique_fd.h"
#include "core/channel/pager_messages.h"
#include "core/store/checkpoint_directory.h"
#include "core/store/segment_reader.h"
#include "core/store/segment_writer.h"

namespace replpage {

struct CheckpointOrder {
  const StoreOptions& store;
  const PagerCheckpointMessage& message;
  int state = -1;                 // manifest.state_bytes to be read
  const StoreKey* key = nullptr;  // null: not encrypted
};

// Appends the state by the writer, which has all else already. Throws StoreError, FormatError.
WrittenCheckpoint make_checkpoint(SegmentWriter& writer, const CheckpointOrder& order);

// Reads pages of a checkpoint.
class CheckpointPages {
 public:
  // Opens the store for reading. Throws StoreError.
  CheckpointPages(const StoreOptions& store, const std::string& group, const std::string& id,
                  const StoreKey* key);

  [[nodiscard]] FoundCheckpoint& found() { return found_; }
  // Writes the content of the runs to `target`. Throws StoreError, SysError.
  void fetch(const std::vector<PagerFetchRun>& runs, int target);

 private:
  FoundCheckpoint found_;
  std::unique_ptr<SegmentReader> reader_;
};

}  // namespace replpage
