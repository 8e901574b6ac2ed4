#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "core/base/clock.h"
#include "core/base/procfs.h"
#include "core/memory/memory_map.h"
#include "test/state_victim.h"
#include "test/test.h"
#include "test/test_keeper.h"

namespace replpage::testing {
namespace {

// What a victim and its replica tell the test, through a file that all of them map.
struct Report {
  std::atomic<uint64_t> rounds;
  std::atomic<uint64_t> errors;
  std::atomic<int64_t> pid;
  std::atomic<uint64_t> values[16];
};

class ReportFile {
 public:
  ReportFile() : path_("/tmp/replpage-report-" + std::to_string(::getpid())) {
    fd_ = UniqueFd(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK(fd_.valid() && ::ftruncate(fd_.get(), 4096) == 0);
    report_ = map();
  }
  ~ReportFile() {
    ::munmap(report_, 4096);
    ::unlink(path_.c_str());
  }
  Report* map() const {
    void* at = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    CHECK(at != MAP_FAILED);
    return static_cast<Report*>(at);
  }
  Report* operator->() const { return report_; }
  void close_file() { fd_.reset(); }

 private:
  std::string path_;
  UniqueFd fd_;
  Report* report_ = nullptr;
};

template <class Condition>
bool wait_for(Condition condition, int limit_ms = 3000) {
  for (int waited = 0; waited < limit_ms * slowness(); ++waited) {
    if (condition()) return true;
    ::usleep(1000);
  }
  return condition();
}

constexpr uint64_t kWords = (8u << 20) / sizeof(uint64_t);

void fill(uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) words[i] = seed + i * 0x9E3779B97F4A7C15ull;
}

bool is_filled(const uint64_t* words, uint64_t count, uint64_t seed) {
  for (uint64_t i = 0; i < count; ++i) {
    if (words[i] != seed + i * 0x9E3779B97F4A7C15ull) return false;
  }
  return true;
}

uint64_t* new_memory(uint64_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = 0) {
  void* at = ::mmap(nullptr, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (at == MAP_FAILED) ::_exit(9);
  return static_cast<uint64_t*>(at);
}

// The test process maps objects of the kernel for its captures, and shared memory of other tests,
// which a victim must not have.
void drop_objects_of_runner() {
  std::istringstream maps(read_proc("/proc/self/maps").value_or(""));
  for (std::string line; std::getline(maps, line);) {
    uint64_t start = 0, end = 0;
    if (line.find("anon_inode:") == std::string::npos &&
        line.find("/dev/zero") == std::string::npos)
      continue;
    if (std::sscanf(line.c_str(), "%lx-%lx", &start, &end) != 2) continue;
    ::munmap(reinterpret_cast<void*>(start), end - start);  // NOLINT: from its own map
  }
}

// A victim, with all its descendants, that is followed epoch by epoch.
class Followed {
 public:
  explicit Followed(const StateVictim::Body& body)
      : victim([body](const std::function<void()>& ready) {
          drop_objects_of_runner();
          body(ready);
        }) {}

  // Stops the victim and takes an epoch; it stays stopped. Without memory: of the kernel's state
  // and the mappings only.
  void take_epoch(bool with_memory = true) {
    victim.stop();
    staging = {};
    image.processes.clear();
    image.file_tables.clear();
    descendants.pids = parents_first();
    for (const pid_t pid : descendants.pids) take_process(pid, with_memory);
    take_objects(with_memory);
  }

  // Kills what outlives the victim: its descendants.
  struct Descendants {
    std::vector<pid_t> pids;
    ~Descendants() {
      for (const pid_t pid : pids) ::kill(pid, SIGKILL);
    }
  };
  Descendants descendants;
  StateVictim victim;
  GroupImage image;
  MemoryStaging staging;

 private:
  std::vector<pid_t> parents_first() {
    std::vector<pid_t> order{victim.pid()};
    for (size_t i = 0; i < order.size(); ++i) {
      for (const auto& [pid, process] : victim.tree().processes()) {
        if (process.parent == order[i]) order.push_back(pid);
      }
    }
    return order;
  }

  void take_process(pid_t pid, bool with_memory) {
    const TracedProcess& traced = victim.tree().processes().at(pid);
    ProcessCaptureInput input{.host_pid = pid,
                              .host_tids = {pid},
                              .previous = nullptr,
                              .slow_state = true,
                              .inject = victim.inject()};
    for (const auto& [tid, thread] : traced.threads) {
      if (tid != pid) input.host_tids.push_back(tid);
    }
    auto process = capture_process(input);
    CHECK(process.has_value());
    process->parent = traced.parent;
    process->file_table = static_cast<uint32_t>(image.file_tables.size());
    image.file_tables.emplace_back();
    auto mappings = read_memory_map(pid, mappings_[pid], true, nullptr);
    CHECK(mappings.has_value());
    process->mappings = mappings_[pid] = *mappings;
    auto& memory = memory_[pid];
    if (with_memory && !memory) memory = MemoryCapture::create(pid, pid, {}, injector_of(pid));
    if (with_memory) {
      memory->track(process->mappings);
      memory->copy_changed(process->mappings, staging);
    }
    image.processes.push_back(std::move(*process));
  }

  // The whole content of every shared object, each time.
  void take_objects(bool with_memory) {
    image.shared_objects.clear();
    for (const ProcessImage& process : image.processes) {
      for (const MappingImage& mapping : process.mappings) {
        if (mapping.kind != MappingKind::kSharedObject || is_known(mapping)) continue;
        SharedObjectImage object;
        object.id = static_cast<uint32_t>(image.shared_objects.size());
        object.device = mapping.device;
        object.inode = mapping.inode;
        object.size = mapping.end - mapping.start;
        image.shared_objects.push_back(object);
        if (with_memory) take_object(process.pid, mapping, object.id);
      }
    }
  }

  bool is_known(const MappingImage& mapping) const {
    for (const SharedObjectImage& object : image.shared_objects) {
      if (object.device == mapping.device && object.inode == mapping.inode) return true;
    }
    return false;
  }

  void take_object(pid_t pid, const MappingImage& mapping, uint32_t id) {
    const UniqueFd memory(::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDONLY));
    const uint64_t bytes = mapping.end - mapping.start;
    auto room = staging.reserve(bytes);
    CHECK(::pread(memory.get(), room.data(), bytes, static_cast<off_t>(mapping.start)) ==
          static_cast<ssize_t>(bytes));
    PageRun run;
    run.object = id;
    run.length = bytes;
    run.data_offset = staging.keep(bytes);
    staging.add(run);
  }

  MemoryCapture::Injector injector_of(pid_t pid) {
    TraceTree& tree = victim.tree();
    return {.create_uffd = [&tree, pid]() -> std::optional<long> {
              return tree.inject(pid, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | 1});
            },
            .close_remote =
                [&tree, pid](int fd) { tree.inject(pid, SYS_close, {static_cast<uint64_t>(fd)}); }};
  }

  std::map<pid_t, std::vector<MappingImage>> mappings_;
  std::map<pid_t, std::unique_ptr<MemoryCapture>> memory_;
};

// Kills the primary and its descendants, which may notice that their parent went first.
void end(std::unique_ptr<Followed>& followed, ReportFile& report) {
  CHECK_EQUAL(report->errors.load(), 0u);
  followed.reset();
  ::usleep(20'000);
  report->errors = 0;
}

// Lines of /proc/PID/maps as "start-end rwxp", adjacent equal ones joined.
struct MapLine {
  uint64_t start, end;
  std::string what;
};

std::string joined(const std::vector<MapLine>& lines) {
  std::vector<MapLine> all;
  for (const MapLine& line : lines) {
    if (!all.empty() && all.back().end == line.start && all.back().what == line.what) {
      all.back().end = line.end;
    } else {
      all.push_back(line);
    }
  }
  std::ostringstream text;
  for (const MapLine& line : all) {
    text << std::hex << line.start << "-" << line.end << " " << line.what << "\n";
  }
  return text.str();
}

std::string what_of(uint32_t prot, bool shared) {
  std::string text;
  text += (prot & PROT_READ) != 0 ? 'r' : '-';
  text += (prot & PROT_WRITE) != 0 ? 'w' : '-';
  text += (prot & PROT_EXEC) != 0 ? 'x' : '-';
  text += shared ? 's' : 'p';
  return text;
}

std::string maps_of_image(const ProcessImage& process) {
  std::vector<MapLine> lines;
  for (const MappingImage& mapping : process.mappings) {
    const bool shared = mapping.kind == MappingKind::kFileShared ||
                        mapping.kind == MappingKind::kSharedObject ||
                        mapping.kind == MappingKind::kSysvShared;
    lines.push_back({mapping.start, mapping.end, what_of(mapping.prot, shared)});
  }
  return joined(lines);
}

std::string maps_of_text(const std::string& maps) {
  std::vector<MapLine> lines;
  std::istringstream text(maps);
  for (std::string line; std::getline(text, line);) {
    MapLine parsed{};
    char flags[5] = {};
    CHECK(std::sscanf(line.c_str(), "%lx-%lx %4s", &parsed.start, &parsed.end, flags) == 3);
    parsed.what = flags;
    lines.push_back(parsed);
  }
  return joined(lines);
}

[[noreturn]] void self_check_loop(Report* report, const uint64_t* words, uint64_t seed) {
  for (;;) {
    if (!is_filled(words, kWords, seed)) ++report->errors;
    report->pid = ::getpid();
    ++report->rounds;
    ::usleep(1000);
  }
}

}  // namespace

TEST(replica_of_a_single_process_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kWords * 8);
    fill(words, kWords, 7);
    ready();
    self_check_loop(mine, words, 7);
  });
  CHECK(wait_for([&] { return report->rounds > 3; }));
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  TestKeeper keeper;
  GroupImage image = followed->image;
  const KeeperAnswer built = keeper.apply(image, followed->staging);
  CHECK(built.resident_bytes >= kWords * 8);
  followed.reset();
  const uint64_t before = report->rounds;
  report->pid = 0;
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK_EQUAL(report->pid.load(), pid);
}

TEST(replica_of_a_single_process_has_its_mappings) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kWords * 8);
    fill(words, kWords, 7);
    new_memory(3 << 20, PROT_NONE, MAP_NORESERVE);
    new_memory(1 << 20, PROT_READ | PROT_WRITE, MAP_GROWSDOWN | MAP_STACK);
    ready();
    self_check_loop(mine, words, 7);
  });
  CHECK(wait_for([&] { return report->rounds > 3; }));
  followed->take_epoch();
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  followed.reset();
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(maps_of_text(keeper.maps(image.processes[0].pid)), maps_of_image(image.processes[0]));
}

namespace {

struct PingPong {
  std::mutex mutex;
  std::condition_variable turned;
  bool left = true;
};

void play(PingPong& game, bool left, std::atomic<uint64_t>& count) {
  for (;;) {
    std::unique_lock lock(game.mutex);
    game.turned.wait(lock, [&] { return game.left == left; });
    game.left = !left;
    ++count;
    game.turned.notify_one();
    lock.unlock();
    ::usleep(200);
  }
}

void check_thread(Report* report, std::atomic<uint64_t>& count) {
  const pid_t tid = static_cast<pid_t>(::syscall(SYS_gettid));
  thread_local uint64_t mine = 0;
  for (;;) {
    const timespec nap{.tv_sec = 0, .tv_nsec = 3'000'000};
    if (::nanosleep(&nap, nullptr) != 0) ++report->errors;
    if (::syscall(SYS_gettid) != tid) ++report->errors;
    if (++mine != ++count) ++report->errors;
  }
}

[[noreturn]] void run_threads(Report* report, const std::function<void()>& ready) {
  static PingPong game;
  std::thread([&] { play(game, true, report->values[0]); }).detach();
  std::thread([&] { play(game, false, report->values[1]); }).detach();
  std::thread([&] { check_thread(report, report->values[2]); }).detach();
  std::thread([&] {
    double x = 1;
    for (;;) {
      for (int i = 0; i < 1000; ++i) x = x * 1.0000001 + 1e-9;
      if (!(x > 0)) ++report->errors;
      if (x > 1e100) x = 1;
      ++report->values[3];
    }
  }).detach();
  ready();
  for (;;) {
    ::pause();
    ++report->errors;
  }
}

}  // namespace

TEST(replica_of_threads_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_threads(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[0] > 3 && report->values[2] > 3; }));
  followed->take_epoch();
  CHECK_EQUAL(followed->image.processes[0].threads.size(), 5u);
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  followed.reset();
  std::array<uint64_t, 4> before{};
  for (size_t i = 0; i < 4; ++i) before[i] = report->values[i];
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted 5 threads in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] {
    for (size_t i = 0; i < 4; ++i) {
      if (report->values[i] < before[i] + 5) return false;
    }
    return true;
  }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

namespace {

// Changes its address space step by step, as the test asks, and checks all of it all the time.
class Changer {
 public:
  explicit Changer(Report* report) : report_(report) {}

  [[noreturn]] void run(const std::function<void()>& ready) {
    fixed_ = new_memory(kBytes);
    fill(fixed_, kBytes / 8, 1);
    ready();
    for (uint64_t step = 0;;) {
      if (report_->values[0] != step) {
        change(++step);
        report_->values[1] = step;
      }
      if (!is_right()) ++report_->errors;
      ++report_->rounds;
      ::usleep(500);
    }
  }

 private:
  static constexpr uint64_t kBytes = 1 << 20;

  void change(uint64_t step) {
    switch (step) {
      case 1:  // appears; a hole in the middle; read-only after it was written
        added_ = new_memory(4 * kBytes);
        fill(added_, 4 * kBytes / 8, 2);
        ::munmap(added_ + kBytes / 8, kBytes);
        ::mprotect(added_, kBytes, PROT_READ);
        heap_.assign(3 * kBytes, 'x');
        for (int i = 0; i < 64; ++i) small_.emplace_back(50'000, static_cast<char>('a' + i % 26));
        break;
      case 2:  // discarded, moved, written again in part
        ::madvise(fixed_, kBytes / 2, MADV_DONTNEED);
        discarded_ = true;
        added_ = static_cast<uint64_t*>(
                     ::mremap(added_ + 2 * kBytes / 8, 2 * kBytes, 3 * kBytes, MREMAP_MAYMOVE)) -
                 2 * kBytes / 8;
        moved_ = true;
        small_.resize(7);
        break;
      default:  // gone; another takes its place
        ::munmap(added_ + 2 * kBytes / 8, 3 * kBytes);
        added_ = nullptr;
        fixed_ = static_cast<uint64_t*>(::mmap(fixed_, kBytes, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        fill(fixed_, 512, 3);
        replaced_ = true;
    }
  }

  bool is_right() const {
    if (replaced_) return is_filled(fixed_, 512, 3) && is_zero(fixed_ + 512, kBytes / 8 - 512);
    const uint64_t half = kBytes / 16;
    if (discarded_ && !is_zero(fixed_, half)) return false;
    if (discarded_ && fixed_[half] != 1 + half * 0x9E3779B97F4A7C15ull) return false;
    if (!discarded_ && !is_filled(fixed_, kBytes / 8, 1)) return false;
    if (added_ == nullptr) return true;
    if (!moved_ && !is_filled(added_, kBytes / 8, 2)) return false;
    const uint64_t word = 2 * kBytes / 8;
    if (added_[word] != 2 + word * 0x9E3779B97F4A7C15ull) return false;
    if (moved_ && !is_zero(added_ + 4 * kBytes / 8, kBytes / 8)) return false;
    for (size_t i = 0; i < small_.size(); ++i) {
      if (!is_all(small_[i], static_cast<char>('a' + i % 26))) return false;
    }
    return is_all(heap_, 'x');
  }

  // Allocates nothing, so that the heap stays as it is.
  static bool is_all(const std::string& text, char letter) {
    return text.find_first_not_of(letter) == std::string::npos;
  }

  static bool is_zero(const uint64_t* words, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      if (words[i] != 0) return false;
    }
    return true;
  }

  Report* report_;
  uint64_t* fixed_ = nullptr;
  uint64_t* added_ = nullptr;
  std::string heap_;
  std::vector<std::string> small_;
  bool discarded_ = false, moved_ = false, replaced_ = false;
};

void promote_after_steps(uint64_t steps) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { Changer(report.map()).run(ready); });
  TestKeeper keeper;
  GroupImage image;
  for (uint64_t step = 0; step <= steps; ++step) {
    report->values[0] = step;
    CHECK(wait_for([&] { return report->values[1] == step && report->rounds > 3; }));
    followed->take_epoch();
    image = followed->image;
    keeper.apply(image, followed->staging);
    if (step < steps) followed->victim.go_on();
  }
  followed.reset();
  CHECK_EQUAL(report->errors.load(), 0u);
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK_EQUAL(maps_of_text(keeper.maps(image.processes[0].pid)), maps_of_image(image.processes[0]));
}

}  // namespace

TEST(replica_follows_changes_of_an_address_space) {
  for (uint64_t steps = 0; steps <= 3; ++steps) promote_after_steps(steps);
}

// A page that was copied while private memory was there, which a shared object replaced before the
// epoch ended.
TEST(replica_keeps_old_private_pages_out_of_shared_objects) {
  for (const int prot : {PROT_READ, PROT_READ | PROT_WRITE}) {
    ReportFile report;
    auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
      Report* mine = report.map();
      void* at =
          ::mmap(nullptr, kWords * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) ::_exit(9);
      auto* words = static_cast<uint64_t*>(at);
      fill(words, kWords, 7);
      if (::mprotect(at, kWords * 8, prot) != 0) ::_exit(9);
      mine->values[0] = reinterpret_cast<uint64_t>(at);
      ready();
      self_check_loop(mine, words, 7);
    });
    CHECK(wait_for([&] { return report->rounds > 1; }));
    followed->take_epoch();
    std::ranges::fill(followed->staging.reserve(kPageSize), 0xee);
    PageRun old;
    old.pid = followed->victim.pid();
    old.address = report->values[0] + kPageSize;
    old.length = kPageSize;
    old.data_offset = followed->staging.keep(kPageSize);
    followed->staging.add(old);
    TestKeeper keeper;
    GroupImage image = followed->image;
    keeper.apply(image, followed->staging);
    end(followed, report);
    const uint64_t before = report->rounds;
    keeper.promote(image);
    CHECK(wait_for([&] { return report->rounds > before + 2; }));
    CHECK_EQUAL(report->errors.load(), 0u);
  }
}

namespace {

// A process of the family: checks for ever that it is where it was. (The parent of the root is
// another: the keeper.)
[[noreturn]] void stay(Report* report, int number, bool root = false) {
  const pid_t parent = ::getppid(), self = ::getpid(), group = ::getpgid(0), session = ::getsid(0);
  for (;;) {
    if ((!root && ::getppid() != parent) || ::getpid() != self || ::getpgid(0) != group ||
        ::getsid(0) != session) {
      ++report->errors;
    }
    ++report->values[number];
    ::usleep(1000);
  }
}

enum Slot { kRoot, kEarly, kLeader, kGrandchild, kGroupLeader, kMember, kExited, kKilled, kGo };

pid_t fork_into(const std::function<void()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    body();
    ::_exit(9);
  }
  return pid;
}

[[noreturn]] void run_family(Report* report, const std::function<void()>& ready) {
  fork_into([&] { stay(report, kEarly); });
  ::setsid();
  fork_into([&] {
    ::setsid();
    fork_into([&] { stay(report, kGrandchild); });
    stay(report, kLeader);
  });
  const pid_t leader = fork_into([&] {
    ::setpgid(0, 0);
    stay(report, kGroupLeader);
  });
  ::usleep(10'000);
  fork_into([&] {
    ::setpgid(0, leader);
    stay(report, kMember);
  });
  const pid_t exited = fork_into([] { ::_exit(7); });
  const pid_t killed = fork_into([] { ::raise(SIGTERM); });
  report->values[kExited] = static_cast<uint64_t>(exited);
  report->values[kKilled] = static_cast<uint64_t>(killed);
  ready();
  while (report->values[kGo] == 0) ::usleep(1000);
  int status = 0;
  if (::waitpid(exited, &status, 0) != exited || WEXITSTATUS(status) != 7) ++report->errors;
  if (::waitpid(killed, &status, 0) != killed || WTERMSIG(status) != SIGTERM) ++report->errors;
  if (::waitpid(-1, &status, WNOHANG) != 0) ++report->errors;
  if (::kill(leader, SIGKILL) != 0 || ::waitpid(leader, &status, 0) != leader) ++report->errors;
  stay(report, kRoot);
}

ZombieImage zombie_of(const ProcessImage& parent, uint64_t pid, int status) {
  ZombieImage zombie;
  zombie.pid = static_cast<int32_t>(pid);
  zombie.parent = parent.pid;
  zombie.process_group = parent.process_group;
  zombie.session = parent.session;
  zombie.wait_status = status;
  zombie.name = "zombie";
  return zombie;
}

}  // namespace

TEST(replica_of_a_family_runs_on) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_family(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[kGrandchild] > 3 && report->values[kMember] > 3; }));
  followed->take_epoch();
  GroupImage image = followed->image;
  CHECK_EQUAL(image.processes.size(), 6u);
  image.zombies = {zombie_of(image.processes[0], report->values[kExited], 7 << 8),
                   zombie_of(image.processes[0], report->values[kKilled], SIGTERM)};
  TestKeeper keeper;
  keeper.apply(image, followed->staging);
  MemoryStaging nothing;
  keeper.apply(image, nothing);  // the same again changes nothing
  end(followed, report);
  std::array<uint64_t, 6> before{};
  for (size_t i = 0; i < before.size(); ++i) before[i] = report->values[i];
  const KeeperAnswer promoted = keeper.promote(image);
  note("promoted 6 processes in " + std::to_string(promoted.took_us) + " us");
  CHECK(wait_for([&] { return report->values[kMember] > before[kMember] + 3; }));
  CHECK(wait_for([&] { return report->values[kGroupLeader] > before[kGroupLeader] + 3; }));
  CHECK(wait_for([&] { return report->values[kEarly] > before[kEarly] + 3; }));
  CHECK(wait_for([&] { return report->values[kGrandchild] > before[kGrandchild] + 3; }));
  CHECK(wait_for([&] { return report->values[kLeader] > before[kLeader] + 3; }));
  report->values[kGo] = 1;
  CHECK(wait_for([&] { return report->values[kRoot] > 3; }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

namespace {

[[noreturn]] void run_changing_family(Report* report, const std::function<void()>& ready) {
  const pid_t doomed = fork_into([&] { stay(report, 1); });
  std::thread([&] { stay(report, 2, true); }).detach();
  ready();
  while (report->values[kGo] == 0) ::usleep(1000);
  ::kill(doomed, SIGKILL);
  ::waitpid(doomed, nullptr, 0);
  fork_into([&] { stay(report, 3); });
  std::thread([&] { stay(report, 4, true); }).detach();
  stay(report, 5, true);
}

}  // namespace

TEST(replica_follows_processes_and_threads) {
  ReportFile report;
  auto followed = std::make_unique<Followed>(
      [&](const std::function<void()>& ready) { run_changing_family(report.map(), ready); });
  CHECK(wait_for([&] { return report->values[1] > 3 && report->values[2] > 3; }));
  TestKeeper keeper;
  followed->take_epoch();
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  report->values[kGo] = 1;
  followed->victim.go_on();
  CHECK(wait_for([&] {
    followed->victim.tree().wait_events(now_ns() + 1'000'000);
    return report->values[3] > 3 && report->values[5] > 3;
  }));
  followed->take_epoch();
  image = followed->image;
  CHECK_EQUAL(image.processes.size(), 2u);
  keeper.apply(image, followed->staging);
  end(followed, report);
  std::array<uint64_t, 6> before{};
  for (size_t i = 0; i < before.size(); ++i) before[i] = report->values[i];
  keeper.promote(image);
  for (const size_t i : {2, 3, 4, 5}) {
    CHECK(wait_for([&] { return report->values[i] > before[i] + 3; }));
  }
  CHECK_EQUAL(report->errors.load(), 0u);
}

TEST(lazy_memory_is_served_and_the_old_content_freed) {
  ReportFile report;
  constexpr uint64_t kBytes = 32 << 20;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    uint64_t* words = new_memory(kBytes);
    mine->values[1] = reinterpret_cast<uint64_t>(words);
    fill(words, kBytes / 8, 1);
    ready();
    for (uint64_t seed = 1;;) {
      if (mine->values[0] > seed) {
        seed = mine->values[0];
        fill(words, kBytes / 8, seed);
        mine->values[2] = seed;
      }
      if (!is_filled(words, kBytes / 8, seed)) ++mine->errors;
      ++mine->rounds;
      ::usleep(1000);
    }
  });
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  const UniqueFd memory =
      UniqueFd(::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDONLY));
  const std::map<int32_t, int> sources{{pid, memory.get()}};
  TestKeeper keeper(sources);
  keeper.apply(followed->image, followed->staging);
  followed->victim.go_on();
  report->values[0] = 2;
  CHECK(wait_for([&] { return report->values[2] == 2; }));
  const uint64_t before_stop = report->rounds;
  CHECK(wait_for([&] { return report->rounds > before_stop + 1; }));
  followed->take_epoch();
  // All that was written outside of the array is copied, the array is read when touched.
  const uint64_t start = report->values[1];
  MemoryStaging rest;
  rest.pages = followed->staging.pages;
  for (const PageRun& run : followed->staging.runs) {
    if (run.address + run.length <= start || run.address >= start + kBytes)
      rest.runs.push_back(run);
  }
  keeper.apply(followed->image, rest);
  GroupImage image = followed->image;
  const uint64_t before = report->rounds;
  const KeeperAnswer promoted = keeper.promote(image, {{pid, start, start + kBytes}});
  note("promoted with lazy memory in " + std::to_string(promoted.took_us) + " us");
  const KeeperAnswer freed = keeper.free_moved();
  CHECK_EQUAL(freed.resident_bytes, kBytes);
  CHECK(wait_for([&] { return report->rounds > before + 2; }, 20'000));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK(keeper.free_moved().served_pages >= kBytes / 4096);
  CHECK_EQUAL(maps_of_text(keeper.maps(pid)), maps_of_image(image.processes[0]));
}

// A huge page over memory of which some pages are cold would make pages of zeros of these.
TEST(cold_pages_stay_missing_where_huge_pages_are_asked_for) {
  ReportFile report;
  constexpr uint64_t kHuge = 2 << 20, kBytes = 4 * kHuge;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    const auto room = reinterpret_cast<uint64_t>(new_memory(kBytes + kHuge));
    auto* words = reinterpret_cast<uint64_t*>((room + kHuge - 1) / kHuge * kHuge);  // NOLINT: in it
    ::madvise(words, kBytes, MADV_HUGEPAGE);
    mine->values[1] = reinterpret_cast<uint64_t>(words);
    fill(words, kBytes / 8, 1);
    ready();
    for (;;) {
      if (!is_filled(words, kBytes / 8, 1)) ++mine->errors;
      ++mine->rounds;
      ::usleep(1000);
    }
  });
  followed->take_epoch();
  const pid_t pid = followed->victim.pid();
  const UniqueFd memory =
      UniqueFd(::open(("/proc/" + std::to_string(pid) + "/mem").c_str(), O_RDONLY));
  const std::map<int32_t, int> sources{{pid, memory.get()}};
  TestKeeper keeper(sources);
  // Of the array all pages are cold but one in each huge page's worth.
  const uint64_t start = report->values[1];
  std::vector<PageRun> runs;
  for (const PageRun& run : std::exchange(followed->staging.runs, {})) {
    for (uint64_t at = run.address; at < run.address + run.length; at += kPageSize) {
      PageRun page = run;
      page.address = at;
      page.length = kPageSize;
      page.data_offset += at - run.address;
      const bool cold = at >= start && at < start + kBytes && at % kHuge != 5 * kPageSize;
      if (cold) page.kind = PageRunKind::kCold;
      runs.push_back(page);
    }
  }
  followed->staging.runs = std::move(runs);
  keeper.apply(followed->image, followed->staging);
  GroupImage image = followed->image;
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 2; }, 20'000));
  CHECK_EQUAL(report->errors.load(), 0u);
  CHECK(keeper.free_moved().served_pages >= (kBytes - kBytes / kHuge * kPageSize) / kPageSize);
}

TEST(replica_shares_what_its_primary_shared) {
  ReportFile report;
  const int segment = ::shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600);
  CHECK(segment >= 0);
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    void* at = ::mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto* shared = static_cast<std::atomic<uint64_t>*>(at);
    auto* sysv = static_cast<std::atomic<uint64_t>*>(::shmat(segment, nullptr, 0));
    fork_into([&] {
      for (;;) {
        // Adds one when the parent has.
        if (shared[0] % 2 == 1 && sysv[1] == shared[0]) {
          ++shared[0];
          ++mine->values[1];
        }
        ::usleep(300);
      }
    });
    ready();
    for (;;) {
      if (shared[0] % 2 == 0) {
        sysv[1] = shared[0] + 1;
        ++shared[0];
        ++mine->values[0];
      }
      ::usleep(300);
    }
  });
  CHECK(wait_for([&] { return report->values[1] > 3; }));
  followed->take_epoch();
  CHECK_EQUAL(followed->image.shared_objects.size(), 1u);
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  end(followed, report);
  const uint64_t before = report->values[1];
  keeper.promote(image);
  CHECK(wait_for([&] { return report->values[1] > before + 3; }));
  ::shmctl(segment, IPC_RMID, nullptr);
}

TEST(replica_maps_files_without_a_name) {
  ReportFile report;
  auto followed = std::make_unique<Followed>([&](const std::function<void()>& ready) {
    Report* mine = report.map();
    const std::string path = "/dev/shm/replpage-unnamed-" + std::to_string(::getpid());
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ::ftruncate(fd, 8192) != 0 || ::pwrite(fd, "abc", 3, 0) != 3) ::_exit(9);
    auto* shared = static_cast<std::atomic<uint64_t>*>(
        ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096));
    const auto* own =
        static_cast<const char*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    ::close(fd);
    ::unlink(path.c_str());
    ready();
    for (;;) {
      const uint64_t before = shared[0]++;
      if (std::memcmp(own, "abc", 4) != 0 || shared[0] != before + 1) ++mine->errors;
      ++mine->rounds;
      ::usleep(500);
    }
  });
  CHECK(wait_for([&] { return report->rounds > 3; }));
  followed->take_epoch();
  TestKeeper keeper;
  GroupImage image = followed->image;
  keeper.apply(image, followed->staging);
  followed.reset();
  const uint64_t before = report->rounds;
  keeper.promote(image);
  CHECK(wait_for([&] { return report->rounds > before + 5; }));
  CHECK_EQUAL(report->errors.load(), 0u);
}

}  // namespace replpage::testing
