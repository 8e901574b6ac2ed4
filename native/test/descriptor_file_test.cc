// Files: by path, without a name, locked, watched, changed since.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/restore/descriptors.h"
#include "test/descriptor_steps.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

TEST(files_keep_path_position_and_flags) {
  const std::string path = scratch() + "/regular";
  for (const How how : kEveryWay) {
    write_file(path, "0123456789");
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDWR | O_APPEND), 5, O_CLOEXEC);
      must(::lseek(5, 4, SEEK_SET) == 4, "lseek");
      must(::dup2(5, 9) == 9, "dup2");
      place(::open(path.c_str(), O_RDONLY | O_NONBLOCK), 7);
      place(::open(scratch().c_str(), O_RDONLY | O_DIRECTORY), 11);
      place(::open("/dev/urandom", O_RDONLY), 12);
      place(::open(path.c_str(), O_PATH), 13);
      place(::open("/proc/uptime", O_RDONLY), 14);
    }));
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(captured.image.file_tables[0].descriptors.size(), 10u);
    CHECK_EQUAL(replica.link(5), path);
    const std::string info = replica.info(5);
    CHECK(info.find("pos:\t4\n") != std::string::npos);
    CHECK(info.find("flags:\t02102002\n") != std::string::npos);  // O_CLOEXEC O_APPEND O_RDWR
    CHECK(replica.info(9).find("flags:\t0102002\n") != std::string::npos);
    CHECK(replica.info(7).find("flags:\t0104000\n") != std::string::npos);
    CHECK(replica.info(13).find("flags:\t010000000\n") != std::string::npos);
    CHECK_EQUAL(replica.link(11), scratch());
    CHECK_EQUAL(replica.link(12), "/dev/urandom");
    CHECK_EQUAL(replica.link(6), "");
    CHECK_EQUAL(replica.link(15), "");
    CHECK_EQUAL(replica.call(SYS_lseek, {5, 2, SEEK_SET}), 2);
    CHECK_EQUAL(replica.call(SYS_lseek, {9, 0, SEEK_CUR}), 2);  // still one description
  }
}

TEST(a_deleted_file_keeps_its_content) {
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      const std::string path = scratch() + "/deleted";
      write_file(path, "gone but not lost");
      place(::open(path.c_str(), O_RDWR), 5);
      place(::open(path.c_str(), O_RDONLY), 6);
      must(::lseek(6, 5, SEEK_SET) == 5, "lseek");
      ::unlink(path.c_str());
      place(::open(scratch().c_str(), O_TMPFILE | O_RDWR, 0600), 7);
      must(::write(7, "tmp", 3) == 3, "write");
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(read_some(replica.descriptor(6).get()), "but not lost");
    CHECK_EQUAL(replica.call(SYS_ftruncate, {5, 4}), 0);
    CHECK_EQUAL(replica.call(SYS_lseek, {6, 0, SEEK_END}), 4);  // both are one file
    CHECK_EQUAL(replica.call(SYS_lseek, {7, 0, SEEK_CUR}), 3);
    CHECK_EQUAL(replica.call(SYS_lseek, {7, 0, SEEK_END}), 3);
  }
}

TEST(inotify_goes_on_watching) {
  const std::string path = scratch() + "/watched";
  ::mkdir(path.c_str(), 0755);
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      place(::inotify_init1(IN_NONBLOCK), 10);
      must(::inotify_add_watch(10, "/tmp", IN_MOVED_TO) == 1, "inotify_add_watch");
      must(::inotify_rm_watch(10, 1) == 0, "inotify_rm_watch");
      must(::inotify_add_watch(10, path.c_str(), IN_CREATE | IN_DELETE) == 2, "inotify_add_watch");
      char events[4096];
      (void)!::read(10, events, sizeof events);
    }));
    CallProcess replica;
    const Captured captured = move_descriptors(primary, replica, how);
    CHECK_EQUAL(file_of(captured.image, 10).notify_watches.at(0).path, path);
    CHECK(read_some(replica.descriptor(10).get()).starts_with("error"));
    write_file(path + "/new", "");
    const std::string event = read_some(replica.descriptor(10).get());
    inotify_event head{};
    CHECK(event.size() > sizeof head);
    std::memcpy(&head, event.data(), sizeof head);
    CHECK_EQUAL(head.wd, 2);
    CHECK_EQUAL(head.mask, static_cast<uint32_t>(IN_CREATE));
    ::unlink((path + "/new").c_str());
  }
}

bool can_lock(const std::string& path, off_t start) {
  const UniqueFd file = open_path(path, O_RDWR);
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = start;
  range.l_len = 1;
  return ::fcntl(file.get(), F_OFD_SETLK, &range) == 0;
}

TEST(locks_are_held_again) {
  const std::string path = scratch() + "/locked";
  write_file(path, "0123456789");
  for (const How how : kEveryWay) {
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDWR), 10);
      must(::flock(10, LOCK_EX) == 0, "flock");
      place(::open(path.c_str(), O_RDWR), 11);  // closing the first number ends POSIX locks
      struct flock range {};
      range.l_type = F_WRLCK;
      range.l_whence = SEEK_SET;
      range.l_start = 2;
      range.l_len = 3;
      must(::fcntl(10, F_SETLK, &range) == 0, "F_SETLK");
      range.l_start = 7;
      range.l_len = 0;
      must(::fcntl(11, F_OFD_SETLK, &range) == 0, "F_OFD_SETLK");
    }));
    CallProcess replica;
    const auto capture = DescriptorCapture::create();
    Captured captured = capture_group(*capture, {primary.pid()}, {replica.pid()});
    CHECK_EQUAL(file_of(captured.image, 10).locks.size(), 2u);
    PromoteInput input;
    input.image = &captured.image;
    input.exact = how == How::kHandOver;
    if (how != How::kRecreate) {
      input.handed = DescriptorCapture::take(captured.input, captured.image);
    } else {
      primary.kill();
    }
    ReplicaProcess* const processes[] = {&replica};
    const std::vector<QueuedLock> queued = install_descriptors(input, processes);
    input.handed.clear();
    if (how == How::kRecreate) {
      CHECK(queued.empty());
      CHECK(!can_lock(path, 3));
    } else {
      CHECK_EQUAL(queued.size(), 1u);  // the primary still has it
      CHECK(queued[0].fd == 10 && queued[0].lock.start == 2 && queued[0].lock.length == 3);
      primary.kill();
    }
    CHECK(!can_lock(path, 9));
    CHECK(can_lock(path, 6));
    const UniqueFd other = open_path(path, O_RDWR);
    CHECK_EQUAL(::flock(other.get(), LOCK_EX | LOCK_NB), -1);
  }
}

TEST(named_pipes_and_process_handles_are_restored) {
  const std::string path = scratch() + "/fifo";
  for (const How how : kEveryWay) {
    ::unlink(path.c_str());
    must(::mkfifo(path.c_str(), 0600) == 0, "mkfifo");
    CallProcess primary(clean([&] {
      place(::open(path.c_str(), O_RDONLY | O_NONBLOCK), 10);
      place(::open(path.c_str(), O_WRONLY), 11);
      place(static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0)), 12);
      const pid_t child = ::fork();
      if (child == 0) ::_exit(0);
      place(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)), 13);
      must(::waitpid(child, nullptr, 0) == child, "waitpid");
    }));
    CallProcess replica;
    move_descriptors(primary, replica, how);
    CHECK_EQUAL(::write(replica.descriptor(11).get(), "named", 5), 5);
    CHECK_EQUAL(read_some(replica.descriptor(10).get()), "named");
    CHECK(replica.info(12).find("Pid:\t" + std::to_string(replica.pid())) != std::string::npos);
    CHECK(replica.info(13).find("Pid:\t-1") != std::string::npos);
  }
}

TEST(a_file_that_changed_since_the_epoch_is_noticed) {
  const std::string path = scratch() + "/written";
  write_file(path, "before");
  CallProcess primary(clean([&] { place(::open(path.c_str(), O_RDWR), 5); }));
  const auto capture = DescriptorCapture::create();
  const Captured captured = capture_group(*capture, {primary.pid()}, {primary.pid()});
  check_files_unchanged(captured.image);
  ::usleep(20'000);
  CHECK_EQUAL(::write(primary.descriptor(5).get(), "after", 5), 5);
  int error = 0;
  try {
    check_files_unchanged(captured.image);
  } catch (const SysError& changed) {
    error = changed.error();
    CHECK_EQUAL(*changed.object().path, path);
  }
  CHECK_EQUAL(error, ESTALE);
}

TEST(a_file_mapped_for_writing_is_noticed_too) {
  GroupImage image;
  const std::string path = scratch() + "/mapped";
  write_file(path, std::string(4096, 'm'));
  const UniqueFd file = open_path(path, O_RDWR);
  void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  must(memory != MAP_FAILED, "mmap");
  const auto start = reinterpret_cast<uint64_t>(memory);
  Captured captured;
  captured.input.processes.push_back({.host_pid = ::getpid(), .group_pid = ::getpid()});
  MappingImage& mapping = image.processes.emplace_back().mappings.emplace_back();
  mapping.start = start;
  mapping.end = start + 4096;
  mapping.kind = MappingKind::kFileShared;
  mapping.prot = PROT_READ | PROT_WRITE;
  mapping.path = path;
  DescriptorCapture::create()->capture(captured.input, image);
  CHECK_EQUAL(image.mapped_files.size(), 1u);
  image.open_files.clear();
  if (image.mapped_files[0].times_tell) check_files_unchanged(image);
  ::usleep(20'000);
  static_cast<char*>(memory)[0] = 'n';
  bool noticed = false;
  try {
    check_files_unchanged(image);
  } catch (const SysError& error) {
    noticed = error.error() == ESTALE;
  }
  CHECK(noticed);
  ::munmap(memory, 4096);
}

}  // namespace
}  // namespace replpage::testing
