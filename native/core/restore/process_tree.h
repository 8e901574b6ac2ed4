// The processes of a replica: created, ended, and in their sessions and process groups.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/image/group_image.h"
#include "core/restore/stub_process.h"

namespace replpage {

class ProcessTree {
 public:
  // Makes processes, their threads and zombies those of the image. Throws SysError(ENOTSUP) for a
  // session that cannot be rebuilt.
  void shape(const GroupImage& image);

  [[nodiscard]] StubProcess& at(int32_t pid) { return *members_.at(pid).process; }
  [[nodiscard]] StubProcess* find(int32_t pid);
  [[nodiscard]] bool is_child_of_keeper(int32_t pid) const { return members_.at(pid).parent == 0; }
  // In the order of the last image.
  [[nodiscard]] std::vector<StubProcess*> processes() const;

 private:
  struct Member {
    std::unique_ptr<StubProcess> process;
    int32_t parent = 0;   // 0: the keeper
    int32_t session = 0;  // as it is now
    int32_t group = 0;
    bool subreaper = false;
    bool shares_files = false;  // with its parent (CLONE_FILES)
  };

  void end_others();
  void end(int32_t pid, const ZombieImage* zombie);
  [[nodiscard]] bool is_same(const Member& member, const ProcessImage& image) const;
  [[nodiscard]] int32_t parent_of(const ProcessImage& image) const;
  void create_missing();
  void create(const ProcessImage& image);
  std::unique_ptr<StubProcess> create_in_session(const ProcessImage& image, int32_t parent);
  std::unique_ptr<StubProcess> make(int32_t parent, const CloneRequest& request);
  void create_early_children(const ProcessImage& image);
  [[nodiscard]] int32_t session_of(int32_t pid) const;
  [[nodiscard]] bool is_known_pid(int32_t pid) const;
  void create_zombies();
  void reap(int32_t parent, int32_t pid);
  void join_groups();
  void join_group(const ProcessImage& image, Member& member);
  void set_subreapers();
  [[nodiscard]] bool shares_files(const ProcessImage& image) const;
  void split_file_tables();
  void make_descriptor_room();

  const GroupImage* image_ = nullptr;                  // while shape() runs
  std::map<int32_t, const ProcessImage*> wanted_;      // of image_
  std::map<int32_t, const ZombieImage*> wanted_dead_;  // of image_
  std::map<int32_t, Member> members_;
  std::map<int32_t, int32_t> zombies_;  // pid to parent
  std::vector<int32_t> order_;
};

}  // namespace replpage
