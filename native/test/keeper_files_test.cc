// Files that a primary on another machine has mapped, and that this one lacks or has differently.
#include <sys/stat.h>

#include <filesystem>

#include "core/requirements/requirement_check.h"
#include "test/keeper_fixture.h"

namespace replpage {
namespace {

using namespace keeper_testing;
namespace fs = std::filesystem;

// A program in a folder of its own, and a copy of it elsewhere, as it was shipped.
class Shipped {
 public:
  Shipped()
      : folder_("/tmp/replpage-keeper-files." + std::to_string(::getpid())),
        path_(folder_ + "/app/bin/program"),
        copy_(folder_ + "/store/0123") {
    fs::create_directories(fs::path(path_).parent_path());
    fs::create_directories(fs::path(copy_).parent_path());
    fs::copy_file("/proc/self/exe", path_);
    fs::copy_file("/proc/self/exe", copy_);
  }
  ~Shipped() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  Shipped(const Shipped&) = delete;
  Shipped& operator=(const Shipped&) = delete;

  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const std::string& copy() const { return copy_; }
  [[nodiscard]] uint64_t inode_of_copy() const {
    struct stat status {};
    CHECK(::stat(copy_.c_str(), &status) == 0);
    return status.st_ino;
  }

 private:
  std::string folder_, path_, copy_;
};

// As if the image came from elsewhere: nothing of the primary is asked.
KeeperProcess spawn_for_elsewhere(const StagingArea& staging) {
  return spawn(staging, 1, {.machine = {.monotonic_ns = 1, .boottime_ns = 1}, .inside = {}});
}

PeerFile peer_file(const Victim& victim, const std::string& path, const std::string& copy) {
  HashCache cache;
  const pid_t pid = victim.pid();
  for (const FileRequirement& file : gather_requirements({&pid, 1}, cache).files) {
    if (file.path != path || file.use != FileUse::kMapped) continue;
    return {path, copy, file.inode, file.on_network};
  }
  testing::fail(__FILE__, __LINE__, path + " is not mapped");
}

// `special`, and whatever else the victim has mapped, as it is.
std::vector<std::string> give(Channel& channel, const Victim& victim, const PeerFile& special) {
  HashCache cache;
  const pid_t pid = victim.pid();
  FilesMessage message;
  for (const FileRequirement& file : gather_requirements({&pid, 1}, cache).files) {
    const bool mapped = file.use == FileUse::kMapped || file.use == FileUse::kMappedShared;
    if (!mapped || file.inode == special.inode) continue;
    message.files.push_back({file.path, "", file.inode, file.on_network, file.written});
  }
  message.files.push_back(special);
  channel.send(MessageType::kFiles, message);
  return decode<FilesReadyMessage>(answer_of(channel, MessageType::kFilesReady).body).made;
}

// The replica runs, and has the copy mapped where the program was.
void promote_and_look(const Stage& stage, KeeperProcess& keeper, Victim& victim,
                      const Shipped& shipped) {
  stage.bring_to_epoch(keeper.channel);
  stage.send_promotion(keeper.channel, UniqueFd());
  answer_of(keeper.channel, MessageType::kPromoted);
  const uint64_t before = victim.board().rounds;
  CHECK(within(10'000, [&] { return victim.board().rounds > before + 1000; }));
  CHECK_EQUAL(victim.board().wrong, 0u);
  const std::string status = ask("status");
  const size_t at = status.find("\"hostPid\":");
  CHECK(at != std::string::npos);
  const std::string pid = std::to_string(std::atoi(status.c_str() + at + 10));
  CHECK_EQUAL(read_link("/proc/" + pid + "/exe").value_or(""), shipped.path());
  const std::string maps = read_proc("/proc/" + pid + "/maps").value_or("");
  const size_t line = maps.find(" " + shipped.path() + "\n");
  CHECK(line != std::string::npos);
  const std::string inode = " " + std::to_string(shipped.inode_of_copy()) + " ";
  const size_t start = maps.rfind('\n', line);
  CHECK(maps.find(inode, start == std::string::npos ? 0 : start) < line);
  ask("end");
}

TEST(files_that_differ_are_covered_by_shipped_ones) {
  need_keeper();
  const Shipped shipped;
  Victim victim(shipped.path());
  Stage stage(victim);
  const PeerFile file = peer_file(victim, shipped.path(), shipped.copy());
  ::unlink(shipped.path().c_str());
  fs::copy_file("/bin/true", shipped.path());  // another program of that name
  KeeperProcess keeper = spawn_for_elsewhere(stage.staging());
  CHECK(give(keeper.channel, victim, file).empty());
  promote_and_look(stage, keeper, victim, shipped);
  CHECK(fs::file_size(shipped.path()) == fs::file_size("/bin/true"));
}

TEST(files_that_are_missing_get_a_place_for_shipped_ones) {
  need_keeper();
  const Shipped shipped;
  Victim victim(shipped.path());
  Stage stage(victim);
  const PeerFile file = peer_file(victim, shipped.path(), shipped.copy());
  fs::remove_all(shipped.folder() + "/app");
  KeeperProcess keeper = spawn_for_elsewhere(stage.staging());
  const std::vector<std::string> expected = {shipped.folder() + "/app",
                                             shipped.folder() + "/app/bin", shipped.path()};
  CHECK(give(keeper.channel, victim, file) == expected);
  CHECK(fs::file_size(shipped.path()) == 0);
  promote_and_look(stage, keeper, victim, shipped);
}

TEST(files_that_nobody_told_of_are_refused) {
  need_keeper();
  const Shipped shipped;
  Victim victim(shipped.path());
  Stage stage(victim);
  const PeerFile file = peer_file(victim, shipped.path(), shipped.copy());
  ::unlink(shipped.path().c_str());
  fs::copy_file("/proc/self/exe", shipped.path());
  const auto failure = [&](PeerFile told) {
    KeeperProcess keeper = spawn_for_elsewhere(stage.staging());
    keeper.channel.send(MessageType::kFiles, FilesMessage{{std::move(told)}});
    keeper.channel.send(MessageType::kBuild, ImageMessage{1, stage.image()});
    for (;;) {
      std::optional<ReceivedMessage> message = keeper.channel.receive(kAnswerMs);
      CHECK(message.has_value());
      if (message->type == MessageType::kFilesReady) continue;
      CHECK(message->type == MessageType::kFailed);
      return decode<FailedMessage>(message->body).reason;
    }
  };
  PeerFile another = file;
  another.inode += 1'000'000;  // that the primary does not have mapped
  CHECK(has(failure(another), shipped.path()));
  PeerFile relative = file;
  relative.path = "app/bin/program";
  CHECK(has(failure(relative), "absolute"));
  PeerFile lost = file;
  lost.copy = shipped.folder() + "/store/none";
  CHECK(has(failure(lost), "in its place"));
}

}  // namespace
}  // namespace replpage
