// Installs one descriptor table in a process of the replica.
#pragma once

#include <vector>

#include "core/restore/descriptors.h"
#include "core/restore/open_files.h"

namespace replpage {

class TableInstaller {
 public:
  // `table`: position in image.file_tables; `process` has that table.
  TableInstaller(const GroupImage& image, uint32_t table, const OpenFiles& files,
                 ReplicaProcess& process)
      : image_(image), table_(table), files_(files), process_(process) {}

  // Open files whose epoll watches, signal owner and the like are set through this table.
  void take_charge_of(std::vector<uint32_t> positions) { charge_ = std::move(positions); }

  // Installs all descriptors with their very numbers and closes every other one.
  void install();

 private:
  struct OldWatch {  // a watch of a handed epoll that must be made again
    uint32_t epoll;
    EpollWatch watch;
  };

  void find_lowest();
  void receive_files();
  [[nodiscard]] int number_of(uint32_t position) const { return numbers_.at(position); }
  [[nodiscard]] bool has(int fd, uint32_t position) const;
  [[nodiscard]] int final_number(uint32_t position) const;
  void sort_watches();
  void add_watch(SyscallBatch& batch, int epoll, const EpollWatch& watch, bool must_succeed) const;
  void add_removals(SyscallBatch& batch) const;
  void add_detours(SyscallBatch& batch) const;
  void add_numbers(SyscallBatch& batch) const;
  void add_watches(SyscallBatch& batch) const;
  void add_owners(SyscallBatch& batch) const;
  void run(SyscallBatch& batch) const;

  const GroupImage& image_;
  uint32_t table_;
  const OpenFiles& files_;
  ReplicaProcess& process_;
  std::vector<uint32_t> charge_;
  int lowest_ = 0;
  std::vector<int> numbers_;        // by open file: its number while being installed, or -1
  std::vector<int> old_numbers_;    // the same of ReadyFile::watched_old
  std::vector<OldWatch> removed_;   // in handed epolls, of files that are replaced or signalfds
  std::vector<OldWatch> straight_;  // to be added under the numbers the table has
  std::vector<OldWatch> detours_;   // watched under a number that the table does not have for it
};

// POSIX locks of the image, set by the processes that own them. Returns those that somebody holds.
std::vector<QueuedLock> set_posix_locks(const GroupImage& image,
                                        std::span<ReplicaProcess* const> processes);

}  // namespace replpage
