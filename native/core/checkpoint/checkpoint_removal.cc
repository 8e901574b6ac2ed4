#include "core/checkpoint/checkpoint_removal.h"

#include "core/link/pager_process.h"

namespace replpage {
namespace {

// A store that does not answer for so long is given up; its pager is killed.
constexpr int kAnswerMs = 60'000;

}  // namespace

PagerDoneMessage remove_checkpoints(const CheckpointPlace& place) {
  PagerFindMessage wanted;
  wanted.id = place.id;
  wanted.store.store = place.store;
  wanted.store.group = place.name;
  wanted.store.allow_memory_file_systems = place.allow_memory_file_systems;
  if (place.rights) {
    wanted.store.as_owner = true;
    wanted.store.uid = place.rights->uid;
    wanted.store.gid = place.rights->gid;
    wanted.store.groups.assign(place.rights->groups.begin(), place.rights->groups.end());
  }
  PagerProcess pager = PagerProcess::start(place.pager_path);
  pager.channel().send(on_wire(PagerMessageType::kRemoveFound), wanted);
  const std::optional<ReceivedMessage> answer = pager.channel().receive(kAnswerMs);
  if (!answer) {
    throw StoreError(StoreFailure::kIo, pager.channel().closed()
                                            ? "page store: the pager ended"
                                            : "page store: it does not answer");
  }
  if (pager_type(answer->type) == PagerMessageType::kFailed) {
    const auto failed = decode<PagerFailedMessage>(answer->body);
    throw StoreError(failed.kind, failed.reason, failed.error);
  }
  return decode<PagerDoneMessage>(answer->body);
}

}  // namespace replpage
