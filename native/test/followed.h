// A victim, with all its descendants, that is followed epoch by epoch.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>
#include <sstream>

#include "core/base/procfs.h"
#include "core/memory/memory_map.h"
#include "test/state_victim.h"
#include "test/test.h"
#include "test/test_keeper.h"
#include "test/victim_report.h"

namespace replpage::testing {

// The test process maps objects of the kernel for its captures, and shared memory of other tests,
// which a victim must not have.
inline void drop_objects_of_runner() {
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
inline void end(std::unique_ptr<Followed>& followed, ReportFile& report) {
  CHECK_EQUAL(report->errors.load(), 0u);
  followed.reset();
  ::usleep(20'000);
  report->errors = 0;
}

}  // namespace replpage::testing
