#include "test/memory_victim.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>

#include "core/base/procfs.h"
#include "core/memory/dirty_tracker.h"
#include "core/memory/soft_dirty_tracker.h"
#include "core/memory/write_protect_uffd.h"
#include "test/test.h"

namespace replpage::testing {
namespace {

struct Command {
  uint64_t (*function)(uint64_t);
  uint64_t argument;
};

[[noreturn]] void serve(int commands, int answers) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Command command{};
  while (::read(commands, &command, sizeof command) == sizeof command) {
    const uint64_t answer = command.function(command.argument);
    if (::write(answers, &answer, sizeof answer) != sizeof answer) break;
  }
  ::_exit(0);
}

UniqueFd memory_of(pid_t pid) {
  return open_path("/proc/" + std::to_string(pid) + "/mem", O_RDONLY);
}

// The page that a private file mapping shows where nothing was written.
ModelReplica::Page page_underneath(const MappingImage& mapping, uint64_t address, pid_t pid) {
  ModelReplica::Page page{};
  if (!is_file_backed_private(mapping.kind)) return page;
  char link[96];
  std::snprintf(link, sizeof link, "/proc/%d/map_files/%lx-%lx", pid, mapping.start, mapping.end);
  UniqueFd file(::open(link, O_RDONLY | O_CLOEXEC));
  if (!file.valid()) file = open_path(mapping.path, O_RDONLY);  // lines were joined
  if (::pread(file.get(), page.data(), page.size(),
              static_cast<off_t>(mapping.offset + address - mapping.start)) < 0) {
    throw std::runtime_error("cannot read " + mapping.path);
  }
  return page;
}

}  // namespace

TrackerKind usual_tracker() {
  const char* const named = std::getenv("REPLPAGE_TEST_TRACKER");
  const bool soft_dirty =
      named != nullptr ? std::strcmp(named, "soft-dirty") == 0 : !WriteProtectUffd::supported();
  if (soft_dirty && !SoftDirtyTracker::supported()) SKIP("this kernel keeps no soft-dirty bits");
  if (!soft_dirty && !WriteProtectUffd::supported()) SKIP("no asynchronous write-protect");
  return soft_dirty ? TrackerKind::kSoftDirty : TrackerKind::kUffdWp;
}

void MemoryVictim::stop() const {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);
}

void MemoryVictim::go_on() const { ::kill(pid_, SIGCONT); }

MemoryVictim::MemoryVictim() {
  int commands[2];
  int answers[2];
  if (::pipe2(commands, O_CLOEXEC) != 0 || ::pipe2(answers, O_CLOEXEC) != 0) {
    throw std::runtime_error("no pipe");
  }
  std::fflush(stdout);
  pid_ = ::fork();
  if (pid_ == 0) {
    // Nothing of the parent's is inherited, above all no userfaultfd of another victim.
    const int from = ::fcntl(commands[0], F_DUPFD, 100);
    const int to = ::fcntl(answers[1], F_DUPFD, 100);
    ::dup2(from, 3);
    ::dup2(to, 4);
    ::close_range(5, ~0u, 0);
    serve(3, 4);
  }
  ::close(commands[0]);
  ::close(answers[1]);
  commands_ = commands[1];
  answers_ = answers[0];
  wait_asleep();
}

MemoryVictim::~MemoryVictim() {
  kill();
  ::close(commands_);
  ::close(answers_);
}

void MemoryVictim::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void MemoryVictim::start(uint64_t (*function)(uint64_t), uint64_t argument) {
  const Command command{function, argument};
  if (::write(commands_, &command, sizeof command) != sizeof command) {
    throw std::runtime_error("the victim is gone");
  }
}

uint64_t MemoryVictim::finish() {
  uint64_t answer = 0;
  if (::read(answers_, &answer, sizeof answer) != sizeof answer) {
    throw std::runtime_error("the victim died");
  }
  wait_asleep();
  return answer;
}

uint64_t MemoryVictim::run(uint64_t (*function)(uint64_t), uint64_t argument) {
  start(function, argument);
  return finish();
}

// Asleep in read(2) on the command pipe: it touches no memory.
void MemoryVictim::wait_asleep() const {
  for (;;) {
    const auto text = read_proc("/proc/" + std::to_string(pid_) + "/syscall");
    if (!text || text->starts_with("0 ")) return;
    ::usleep(50);
  }
}

MemoryCapture::Injector MemoryVictim::injector() {
  return {.create_uffd = [this]() -> std::optional<long> {
            const uint64_t fd = run([](uint64_t) -> uint64_t {
              constexpr int kUserModeOnly = 1;
              return static_cast<uint64_t>(
                  ::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly));
            });
            return static_cast<long>(fd);
          },
          .close_remote =
              [this](int fd) {
                run(
                    [](uint64_t number) -> uint64_t {
                      return static_cast<uint64_t>(::close(static_cast<int>(number)));
                    },
                    static_cast<uint64_t>(fd));
              }};
}

std::vector<MappingImage> MemoryVictim::map() {
  return read_memory_map(pid_, {}, false, nullptr).value();
}

std::span<uint8_t> ModelReplica::reserve(uint64_t bytes) {
  room_.resize(bytes);
  return room_;
}

uint64_t ModelReplica::keep(uint64_t used) {
  room_offset_ = kept_;
  kept_ += used;
  return room_offset_;
}

void ModelReplica::add(const PageRun& run) {
  if (run.kind == PageRunKind::kAbsent) {
    pages_.erase(pages_.lower_bound(run.address), pages_.lower_bound(run.address + run.length));
    return;
  }
  for (uint64_t at = 0; at < run.length; at += kPageSize) {
    auto page = std::make_unique<Page>();
    // Runs of data are added while the room that holds them is still there.
    if (run.kind == PageRunKind::kData) {
      std::memcpy(page->data(), &room_.at(run.data_offset - room_offset_ + at), kPageSize);
    }
    pages_[run.address + at] = std::move(page);
  }
}

void ModelReplica::shape(const std::vector<MappingImage>& mappings) {
  auto mapping = mappings.begin();
  for (auto page = pages_.begin(); page != pages_.end();) {
    while (mapping != mappings.end() && mapping->end <= page->first) ++mapping;
    const bool mapped = mapping != mappings.end() && mapping->start <= page->first;
    page = mapped ? std::next(page) : pages_.erase(page);
  }
}

void ModelReplica::fetch_lazy(pid_t pid, const std::vector<LazyRange>& lazy) {
  const UniqueFd memory = memory_of(pid);
  for (const LazyRange& range : lazy) {
    for (uint64_t at = range.start; at < range.end; at += kPageSize) {
      auto page = std::make_unique<Page>();
      if (::pread(memory.get(), page->data(), kPageSize, static_cast<off_t>(at)) !=
          static_cast<ssize_t>(kPageSize)) {
        throw std::runtime_error("a lazy page cannot be read");
      }
      pages_[at] = std::move(page);
    }
  }
}

std::string ModelReplica::difference(pid_t pid, const std::vector<MappingImage>& mappings) const {
  const UniqueFd memory = memory_of(pid);
  for (const MappingImage& mapping : mappings) {
    if (!holds_private_pages(mapping.kind)) continue;
    std::vector<uint8_t> truth(mapping.end - mapping.start);
    const ssize_t got =
        ::pread(memory.get(), truth.data(), truth.size(), static_cast<off_t>(mapping.start));
    for (uint64_t address = mapping.start; address < mapping.end; address += kPageSize) {
      const uint64_t at = address - mapping.start;
      if (got < 0 || at >= static_cast<uint64_t>(got)) break;  // beyond the end of a file
      const auto known = pages_.find(address);
      const Page page =
          known != pages_.end() ? *known->second : page_underneath(mapping, address, pid);
      if (std::memcmp(page.data(), &truth[at], kPageSize) == 0) continue;
      char text[160];
      std::snprintf(text, sizeof text, "page 0x%lx of mapping 0x%lx-0x%lx (%s) differs, %s",
                    address, mapping.start, mapping.end, mapping.path.c_str(),
                    known != pages_.end() ? "copied" : "absent");
      return text;
    }
  }
  return "";
}

}  // namespace replpage::testing
