// Finds out what is behind one descriptor.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/image/descriptor_table.h"
#include "core/image/unix_diag.h"

namespace replpage {

// Longest deleted file whose content travels with each epoch, and longest queue of a UNIX socket.
inline constexpr size_t kDeletedFileBytesMax = 4u << 20;
inline constexpr size_t kQueueBytesMax = 4u << 20;

class DescriptorProbe {
 public:
  // Pid in the group of a process, thread or zombie given by the pid we see; nullopt: not of the
  // group.
  using GroupPid = std::function<std::optional<int32_t>(pid_t)>;
  explicit DescriptorProbe(GroupPid group_pid) : group_pid_(std::move(group_pid)) {}

  // Whether entry.link is of the kind of file that is there now: of the file itself, as a rule.
  static bool knows_kind(const DescriptorEntry& entry);

  // Brings entry.file, refused and settled up to date; cheap when nothing can have changed, and
  // the second time after a refresh of the table.
  void look_at(DescriptorTable& table, DescriptorEntry& entry, int32_t owner_pid);

  // What sock_diag tells about a UNIX socket, in the network namespace of the table's process.
  void look_at_peer(DescriptorTable& table, DescriptorEntry& entry);

 private:
  void read_path(DescriptorTable& table, DescriptorEntry& entry);
  void read_regular(DescriptorTable& table, DescriptorEntry& entry, const struct stat& status);
  void read_deleted(DescriptorTable& table, DescriptorEntry& entry, const struct stat& status);
  void read_anonymous(DescriptorTable& table, DescriptorEntry& entry);
  void read_timer(DescriptorTable& table, DescriptorEntry& entry);
  void set_to_next_beat(DescriptorTable& table, DescriptorEntry& entry);
  void read_inotify(DescriptorTable& table, DescriptorEntry& entry);
  void read_pidfd(DescriptorEntry& entry);
  void read_open_socket(DescriptorTable& table, DescriptorEntry& entry);
  void find_directory(const DescriptorTable& table, OpenFileImage& file) const;
  void read_owner(DescriptorTable& table, DescriptorEntry& entry);
  bool leads_back(const DescriptorTable& table, const std::string& path,
                  const struct stat& status) const;

  GroupPid group_pid_;
  std::map<std::string, std::unique_ptr<UnixDiag>> diags_;  // by network namespace
};

}  // namespace replpage
