#include "keeper/memory_view.h"

#include <utility>
#include <vector>

#include "core/channel/messages.h"

namespace replpage {

void send_view(Channel& channel, const ReplicaView& view) {
  ViewMessage message;
  std::vector<int> descriptors;
  const auto flush_for = [&](size_t more) {
    if (descriptors.size() + more <= kDescriptorsMax) return;
    message.last = false;
    channel.send(MessageType::kView, std::exchange(message, {}), descriptors);
    descriptors.clear();
  };
  for (const ReplicaView::Process& process : view.processes) {
    flush_for(2);
    message.pids.push_back(process.pid);
    descriptors.insert(descriptors.end(), {process.memory.get(), process.pagemap.get()});
  }
  for (const ReplicaView::Object& object : view.objects) {
    flush_for(1);
    message.objects.push_back(object.id);
    descriptors.push_back(object.memfd.get());
  }
  channel.send(MessageType::kView, std::move(message), descriptors);
}

}  // namespace replpage
