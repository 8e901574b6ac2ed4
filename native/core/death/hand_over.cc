#include "core/death/hand_over.h"

#include <fcntl.h>

#include <algorithm>
#include <string>

#include "core/base/procfs.h"
#include "core/channel/messages.h"

namespace replpage {
namespace {

// Open files, and the memories that lazy pages are read from, as many to a message as one takes.
class DescriptorSender {
 public:
  DescriptorSender(KeeperLink& keeper, uint64_t epoch) : keeper_(keeper), epoch_(epoch) {}

  void add_file(uint32_t position, const UniqueFd& file) {
    message_.positions.push_back(position);
    add(file.get());
  }

  void add_memory(int32_t group_pid, const UniqueFd& memory) {
    message_.memory_pids.push_back(group_pid);
    add(memory.get());
  }

  void flush() {
    if (descriptors_.empty()) return;
    message_.epoch = epoch_;
    keeper_.send(MessageType::kDescriptors, message_, descriptors_);
    message_ = {};
    descriptors_.clear();
  }

 private:
  void add(int descriptor) {
    descriptors_.push_back(descriptor);
    if (descriptors_.size() == kDescriptorsMax) flush();
  }

  KeeperLink& keeper_;
  uint64_t epoch_;
  DescriptorsMessage message_;
  std::vector<int> descriptors_;
};

std::vector<int32_t> processes_of(const std::vector<LazyRange>& lazy) {
  std::vector<int32_t> pids;
  for (const LazyRange& range : lazy) {
    if (std::find(pids.begin(), pids.end(), range.pid) == pids.end()) pids.push_back(range.pid);
  }
  return pids;
}

void send_memories(GroupContext& context, const HandOver& last) {
  DescriptorSender sender(context.replicas->successor(), last.image.epoch);
  std::vector<UniqueFd> memories;  // until they are sent
  for (const int32_t pid : processes_of(last.lazy)) {
    const pid_t host = context.capture->host_pid_of(pid);
    memories.push_back(open_path("/proc/" + std::to_string(host) + "/mem", O_RDONLY));
    sender.add_memory(pid, memories.back());
  }
  sender.flush();
}

}  // namespace

void send_open_files(GroupContext& context, uint64_t epoch,
                     const std::vector<UniqueFd>& open_files) {
  DescriptorSender sender(context.replicas->successor(), epoch);
  for (uint32_t position = 0; position < open_files.size(); ++position) {
    if (open_files[position].valid()) sender.add_file(position, open_files[position]);
  }
  sender.flush();
}

void send_last_state(GroupContext& context, GroupImage& image) {
  context.replicas->successor().send(MessageType::kLastState,
                                     ImageMessage{image.epoch, context.staging.put(image)});
}

void send_order(GroupContext& context, const HandOver& last,
                const std::function<void()>& before_order) {
  send_memories(context, last);
  PageRunList runs = context.runs.fitted(last.image);
  LazyRangeList lazy{last.lazy};
  PromoteMessage order{.epoch = last.image.epoch,
                       .exact = last.exact,
                       .keep_files = context.options.keep_files,
                       .runs = context.staging.put(runs),
                       .lazy = context.staging.put(lazy)};
  before_order();
  context.replicas->successor().send(MessageType::kPromote, order);
}

}  // namespace replpage
