// A replica being built and kept in step: the messages before promotion, applied whole epoch by
// whole epoch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/channel/channel.h"
#include "core/image/group_image.h"
#include "core/restore/moved_address.h"
#include "core/restore/replica.h"
#include "core/uffd/page_source.h"
#include "keeper/peer_files.h"
#include "keeper/staging_reader.h"

namespace replpage {

// Everything that promotion needs, taken out of the standby.
struct PromotionOrder {
  PromoteInput input;
  std::vector<LazySource> sources;
  std::unique_ptr<MovedAddress> address;
};

class StandbyReplica {
 public:
  // `machine`: how far the clocks of the primary's machine are ahead of ours.
  StandbyReplica(StagingReader& staging, const ClockOffsets& machine);

  // Before build(). Returns what was made for it, see FilesReadyMessage.
  std::vector<std::string> take_files(const FilesMessage& message);
  // These throw FormatError (damage, wrong order) and SysError; the replica is lost then.
  void build(const ImageMessage& message);
  void apply_pages(const PagesMessage& message);
  void stage(const PagesMessage& message);
  CommittedMessage commit(const ImageMessage& message);
  // Where cold pages are. `descriptors`: the directory of segments.
  void use_store(const StoreMessage& message, std::vector<UniqueFd> descriptors);
  // Reads them; null where there is no store.
  [[nodiscard]] std::unique_ptr<PageSource> open_store();
  // A promotion is near, of the epoch that the replica is at or of the next one.
  void get_ready();
  void take_descriptors(const DescriptorsMessage& message, std::vector<UniqueFd> descriptors);
  // Keeps what the order to promote will name.
  void take_last_state(const ImageMessage& message);
  // Brings the replica to the epoch of the message. `input.image` stays valid as long as this does.
  PromotionOrder prepare(const PromoteMessage& message);

  // Of pages of the last commit. Throws FormatError.
  [[nodiscard]] HashesMessage hash(const HashMessage& message) const;
  // Tries the last commit out: see drill.h. Nothing may follow.
  DrilledMessage drill(const DrillMessage& message);

  [[nodiscard]] Replica& replica() { return *replica_; }
  // Of the last shape; null before the first.
  [[nodiscard]] const GroupImage* image() const { return image_ ? &*image_ : nullptr; }
  [[nodiscard]] uint64_t epoch() const { return epoch_; }

 private:
  DrilledMessage drill_or_throw(const DrillMessage& message);
  GroupImage read_image(const StagedBytes& where, uint64_t epoch);
  void reshape(GroupImage image);
  // Throws SysError when the replica's clock is behind by more than can be waited for.
  void check_clock() const;
  void await_clock() const;
  void bring_to(const PromoteMessage& message);
  // Drops what was handed over for another epoch.
  void keep_handed_of(uint64_t epoch);
  void write(const PageRunList& list);
  void write_staged();

  StagingReader& staging_;
  const ClockOffsets machine_;
  PeerFiles files_;
  std::unique_ptr<Replica> replica_;
  std::optional<GroupImage> image_;
  uint64_t epoch_ = 0;  // last committed
  bool committed_ = false;
  std::vector<PageRunList> staged_;
  uint64_t staged_epoch_ = 0;
  // For the promotion.
  std::optional<GroupImage> last_state_;
  uint64_t handed_epoch_ = 0;
  std::optional<StoreMessage> store_;
  UniqueFd store_directory_;
  std::vector<std::pair<uint32_t, UniqueFd>> handed_;
  std::vector<LazySource> sources_;
};

}  // namespace replpage
