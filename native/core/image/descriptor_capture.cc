#include "core/image/descriptor_capture.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/image/descriptor_probe.h"
#include "core/image/descriptor_table.h"
#include "core/image/file_content.h"
#include "core/image/mapped_file.h"
#include "core/image/open_file_index.h"
#include "core/image/socket_capture.h"

namespace replpage {
namespace {

// Last number of the "NSpid:" line: the pid in the innermost namespace.
std::optional<int32_t> innermost_pid(pid_t host_pid) {
  const auto status = read_proc("/proc/" + std::to_string(host_pid) + "/status");
  if (!status) return std::nullopt;
  const auto numbers = field_of(*status, "NSpid");
  if (!numbers) return std::nullopt;
  const size_t last = numbers->find_last_of(" \t");
  return std::stoi(
      std::string(last == std::string_view::npos ? *numbers : numbers->substr(last + 1)));
}

bool reads(uint32_t flags) { return (flags & O_ACCMODE) != O_WRONLY; }
bool writes(uint32_t flags) { return (flags & O_ACCMODE) != O_RDONLY; }

class Capture final : public DescriptorCapture {
 public:
  Capture() : probe_([this](pid_t pid) { return group_pid(pid); }) {}
  void capture(const DescriptorCaptureInput& input, GroupImage& image) override;

 private:
  struct Source {  // where an open file was first seen
    DescriptorTable* table;
    DescriptorEntry* entry;
  };
  struct Ends {
    bool read = false, write = false;
  };

  std::optional<int32_t> group_pid(pid_t host_pid) const;
  void refresh_tables(const DescriptorCaptureInput& input);
  void find_tables(const DescriptorCaptureInput& input, GroupImage& image);
  void read_tables(GroupImage& image);
  std::vector<uint32_t> find_same_files();
  static void add_locks(const OpenFileImage& other, OpenFileImage& file);
  void find_outside(GroupImage& image, bool with_content);
  void find_unix_peers(GroupImage& image, bool with_content);
  void mark_standard_streams(const std::string& stream_path, GroupImage& image);
  void resolve_watches(GroupImage& image);
  uint32_t find_watched(const Source& epoll, size_t watch, const GroupImage& image);
  void note_shared_objects(const DescriptorCaptureInput& input, GroupImage& image);
  void read_content(GroupImage& image);
  void note_mapped_files(const DescriptorCaptureInput& input, GroupImage& image) const;
  void report(const DescriptorCaptureInput& input, const GroupImage& image) const;

  DescriptorProbe probe_;
  PipeReader pipe_reader_;
  std::map<pid_t, std::unique_ptr<DescriptorTable>> tables_;
  std::unordered_map<pid_t, int32_t> group_pids_;

  // Of the capture going on.
  const GroupImage* image_ = nullptr;
  std::vector<DescriptorTable*> distinct_;  // by position in image.file_tables
  std::vector<int32_t> owners_;             // the same: pid in the group
  std::vector<Source> sources_;             // by position in image.open_files
};

void Capture::capture(const DescriptorCaptureInput& input, GroupImage& image) {
  image.file_tables.clear();
  image.open_files.clear();
  image_ = &image;
  distinct_.clear();
  owners_.clear();
  sources_.clear();
  refresh_tables(input);
  find_tables(input, image);
  read_tables(image);
  find_outside(image, input.with_content);
  mark_standard_streams(input.stream_path, image);
  resolve_watches(image);
  note_shared_objects(input, image);
  note_mapped_files(input, image);
  if (input.with_content) read_content(image);
  if (input.refusals != nullptr) report(input, image);
}

std::optional<int32_t> Capture::group_pid(pid_t host_pid) const {
  const auto known = group_pids_.find(host_pid);
  if (known != group_pids_.end()) return known->second;
  const auto status = read_proc("/proc/" + std::to_string(host_pid) + "/status");
  if (!status) return std::nullopt;
  const auto inner = innermost_pid(host_pid);
  if (!inner) return std::nullopt;
  const auto leader = field_of(*status, "Tgid");
  if (leader && group_pids_.contains(std::stoi(std::string(*leader)))) return inner;
  const bool zombie = std::any_of(image_->zombies.begin(), image_->zombies.end(),
                                  [&](const ZombieImage& z) { return z.pid == *inner; });
  return zombie ? inner : std::nullopt;
}

void Capture::refresh_tables(const DescriptorCaptureInput& input) {
  group_pids_.clear();
  for (const auto& process : input.processes) {
    group_pids_[process.host_pid] = process.group_pid;
  }
  std::erase_if(tables_, [this](const auto& t) { return !group_pids_.contains(t.first); });
  for (const auto& process : input.processes) {
    auto& table = tables_[process.host_pid];
    try {
      // A table of a dead process whose pid came back fails to refresh, and is opened anew.
      if (!table || !table->refresh()) {
        table = std::make_unique<DescriptorTable>(process.host_pid);
        if (!table->refresh()) table.reset();
      }
    } catch (const SysError& error) {
      if (error.error() != ESRCH && error.error() != ENOENT) throw;
      table.reset();
    }
    if (!table) tables_.erase(process.host_pid);
  }
}

void Capture::find_tables(const DescriptorCaptureInput& input, GroupImage& image) {
  for (size_t i = 0; i < input.processes.size(); ++i) {
    const auto found = tables_.find(input.processes[i].host_pid);
    if (found == tables_.end()) continue;  // gone
    DescriptorTable& table = *found->second;
    const auto shared = std::find_if(distinct_.begin(), distinct_.end(),
                                     [&](auto* other) { return table.shares_with(*other); });
    if (i < image.processes.size()) {
      image.processes[i].file_table = static_cast<uint32_t>(shared - distinct_.begin());
    }
    if (shared != distinct_.end()) continue;
    distinct_.push_back(&table);
    owners_.push_back(input.processes[i].group_pid);
  }
}

// Those that the probe does not know yet are looked at here, the others in read_tables().
std::vector<uint32_t> Capture::find_same_files() {
  std::vector<DescriptorCandidate> candidates;
  for (size_t i = 0; i < distinct_.size(); ++i) {
    DescriptorTable& table = *distinct_[i];
    candidates.reserve(candidates.size() + table.entries().size());
    for (const auto& entry : table.entries()) {
      if (!DescriptorProbe::knows_kind(*entry)) probe_.look_at(table, *entry, owners_[i]);
      const DescriptorHead& head = entry->head;
      const uint32_t flags = head.flags & ~static_cast<uint32_t>(O_CLOEXEC);
      candidates.push_back(
          {.host_pid = table.host_pid(),
           .fd = entry->fd,
           .likeness = descriptor_likeness(head.inode, head.mount, flags, head.position),
           .certain = entry->link.starts_with("socket:"),
           .place = &entry->place});
    }
  }
  return first_of_same_file(candidates);
}

void Capture::read_tables(GroupImage& image) {
  const std::vector<uint32_t> first = find_same_files();
  std::vector<uint32_t> positions(first.size());
  uint32_t index = 0;
  for (size_t i = 0; i < distinct_.size(); ++i) {
    DescriptorTable& table = *distinct_[i];
    FileTableImage& target = image.file_tables.emplace_back();
    target.descriptors.reserve(table.entries().size());
    const uint32_t own = index;
    for (const auto& entry : table.entries()) {
      const uint32_t its_first = first[index];
      const bool is_first = its_first == index;
      // One more number of an open file of this process tells nothing new.
      if (is_first || its_first < own) {
        probe_.look_at(table, *entry, owners_[i]);
      } else {
        entry->stale = entry->stale || entry->changed;
      }
      if (is_first) {
        positions[index] = static_cast<uint32_t>(image.open_files.size());
        image.open_files.push_back(entry->file);
        sources_.push_back({&table, entry.get()});
      } else {
        positions[index] = positions[its_first];
        if (its_first < own) add_locks(entry->file, image.open_files[positions[index]]);
      }
      target.descriptors.push_back({.fd = entry->fd,
                                    .close_on_exec = (entry->head.flags & O_CLOEXEC) != 0,
                                    .open_file = positions[index]});
      ++index;
    }
  }
}

// POSIX locks belong to a process, so each process that shares the file shows its own.
void Capture::add_locks(const OpenFileImage& other, OpenFileImage& file) {
  for (const FileLock& lock : other.locks) {
    if (lock.kind != FileLock::Kind::kPosix) continue;
    const bool listed =
        std::any_of(file.locks.begin(), file.locks.end(), [&](const FileLock& known) {
          return known.kind == lock.kind && known.owner == lock.owner && known.start == lock.start;
        });
    if (!listed) file.locks.push_back(lock);
  }
}

void Capture::find_outside(GroupImage& image, bool with_content) {
  std::unordered_map<uint64_t, Ends> pipes;
  const auto is_pipe = [](const OpenFileImage& file) { return file.kind == OpenFileKind::kPipe; };
  for (const OpenFileImage& file : image.open_files) {
    if (!is_pipe(file)) continue;
    Ends& ends = pipes[file.object];
    ends.read = ends.read || reads(file.flags);
    ends.write = ends.write || writes(file.flags);
  }
  for (OpenFileImage& file : image.open_files) {
    if (is_pipe(file)) file.outside = !pipes[file.object].read || !pipes[file.object].write;
  }
  find_unix_peers(image, with_content);
}

// A connected UNIX socket is inside when its peer is one of the group's, or was closed: then only
// what is still queued matters. Its peer never changes, its shutdown state does.
void Capture::find_unix_peers(GroupImage& image, bool with_content) {
  std::unordered_map<uint64_t, uint32_t> sockets;
  for (uint32_t i = 0; i < image.open_files.size(); ++i) {
    const OpenFileImage& file = image.open_files[i];
    if (file.kind == OpenFileKind::kUnixSocket) sockets[file.object] = i;
  }
  for (const auto& [inode, position] : sockets) {
    OpenFileImage& file = image.open_files[position];
    DescriptorEntry& entry = *sources_[position].entry;
    if (!file.socket.connected && !file.socket.listening && file.socket.type == SOCK_STREAM) {
      continue;
    }
    const bool known = entry.file.socket.peer_object != 0 && !entry.changed;
    const bool was_outside = known && !sockets.contains(entry.file.socket.peer_object);
    if (!was_outside && (with_content || !known)) {
      probe_.look_at_peer(*sources_[position].table, entry);
    }
    file.socket = entry.file.socket;
    const uint64_t peer = file.socket.peer_object;
    const bool hung_up = peer == 0 && file.socket.shut_read && file.socket.shut_write;
    file.outside = file.socket.connected && !sockets.contains(peer) && !hung_up;
    if (file.outside || file.socket.listening) file.socket.peer_object = 0;
  }
}

// Terminals, pipes, UNIX sockets and the group's own log that lead outside, as far as a process has
// them as standard input, output or error. Standard input gets an open file of its own, since what
// replaces a terminal for reading is not what replaces it for writing.
void Capture::mark_standard_streams(const std::string& stream_path, GroupImage& image) {
  constexpr uint32_t kNone = UINT32_MAX;
  const auto leads_outside = [&stream_path](const OpenFileImage& file) {
    return file.kind == OpenFileKind::kOutsideStream ||
           (file.kind == OpenFileKind::kRegular && !stream_path.empty() &&
            file.path == stream_path && writes(file.flags)) ||
           (file.outside &&
            (file.kind == OpenFileKind::kPipe || file.kind == OpenFileKind::kUnixSocket ||
             file.kind == OpenFileKind::kDevice));
  };
  std::vector<uint32_t> inputs(image.open_files.size(), kNone);
  for (FileTableImage& table : image.file_tables) {
    for (DescriptorImage& descriptor : table.descriptors) {
      if (descriptor.fd > 2) break;
      const uint32_t position = descriptor.open_file;
      if (!leads_outside(image.open_files[position])) continue;
      image.open_files[position].kind = OpenFileKind::kOutsideStream;
      const uint32_t flags = image.open_files[position].flags;
      if (descriptor.fd != 0 || !writes(flags)) continue;
      if (inputs[position] == kNone) {
        inputs[position] = static_cast<uint32_t>(image.open_files.size());
        OpenFileImage input = image.open_files[position];
        input.flags &= ~static_cast<uint32_t>(O_ACCMODE);
        image.open_files.push_back(std::move(input));
        sources_.push_back(sources_[position]);
      }
      descriptor.open_file = inputs[position];
    }
  }
}

void Capture::resolve_watches(GroupImage& image) {
  for (size_t position = 0; position < image.open_files.size(); ++position) {
    OpenFileImage& file = image.open_files[position];
    if (file.kind != OpenFileKind::kEpoll) continue;
    const Source& source = sources_[position];
    const auto at = std::find(distinct_.begin(), distinct_.end(), source.table);
    const auto& descriptors =
        image.file_tables[static_cast<size_t>(at - distinct_.begin())].descriptors;
    for (size_t i = 0; i < file.watches.size(); ++i) {
      EpollWatch& watch = file.watches[i];
      const DescriptorEntry* watched = source.table->find(watch.fd);
      if (watched != nullptr && watched->head.inode == source.entry->watched_inodes[i]) {
        const auto found =
            std::lower_bound(descriptors.begin(), descriptors.end(), watch.fd,
                             [](const DescriptorImage& d, int32_t fd) { return d.fd < fd; });
        watch.target = found->open_file;
      } else {
        watch.target = find_watched(source, i, image);
      }
    }
  }
}

// The watched file is behind another number, or in another process, by now.
uint32_t Capture::find_watched(const Source& epoll, size_t watch, const GroupImage& image) {
  const auto& watches = epoll.entry->file.watches;
  kcmp_epoll_slot slot{static_cast<uint32_t>(epoll.entry->fd),
                       static_cast<uint32_t>(watches[watch].fd), 0};
  for (size_t i = 0; i < watch; ++i) {
    if (watches[i].fd == watches[watch].fd) ++slot.toff;
  }
  for (uint32_t i = 0; i < image.open_files.size(); ++i) {
    const Source& candidate = sources_[i];
    if (candidate.entry->head.inode != epoll.entry->watched_inodes[watch]) continue;
    if (::syscall(SYS_kcmp, candidate.table->host_pid(), epoll.table->host_pid(), KCMP_EPOLL_TFD,
                  candidate.entry->fd, &slot) == 0) {
      return i;
    }
  }
  return kNoOpenFile;
}

void Capture::note_shared_objects(const DescriptorCaptureInput& input, GroupImage& image) {
  for (size_t position = 0; position < image.open_files.size(); ++position) {
    OpenFileImage& file = image.open_files[position];
    if (file.kind != OpenFileKind::kMemfd) continue;
    auto& objects = image.shared_objects;
    auto object = std::find_if(objects.begin(), objects.end(), [&](const SharedObjectImage& o) {
      return o.device == file.identity.device && o.inode == file.identity.inode;
    });
    if (object == objects.end()) {
      uint32_t id = 0;
      for (const SharedObjectImage& other : objects) id = std::max(id, other.id + 1);
      if (input.object_id) id = input.object_id(file.identity.device, file.identity.inode);
      objects.push_back({.id = id,
                         .device = file.identity.device,
                         .inode = file.identity.inode,
                         .size = 0,
                         .is_memfd = true,
                         .seals = 0,
                         .name = file.path});
      object = std::prev(objects.end());
    }
    object->is_memfd = true;
    object->name = file.path;
    object->size = file.identity.size;
    file.object = object->id;
    const Source& source = sources_[position];
    const UniqueFd copy = source.table->duplicate(source.entry->fd);
    const int seals = copy.valid() ? ::fcntl(copy.get(), F_GET_SEALS) : -1;
    if (seals >= 0) object->seals = static_cast<uint32_t>(seals);
  }
}

void Capture::note_mapped_files(const DescriptorCaptureInput& input, GroupImage& image) const {
  image.mapped_files.clear();
  std::set<std::pair<uint64_t, uint64_t>> seen;
  const size_t processes = std::min(input.processes.size(), image.processes.size());
  for (size_t i = 0; i < processes; ++i) {
    for (const MappingImage& mapping : image.processes[i].mappings) {
      const bool written =
          mapping.kind == MappingKind::kFileShared && (mapping.prot & PROT_WRITE) != 0;
      if (!written || !seen.emplace(mapping.device, mapping.inode).second) continue;
      auto file = read_mapped_file(input.processes[i].host_pid, mapping);
      if (file) image.mapped_files.push_back(std::move(*file));
    }
  }
}

void Capture::read_content(GroupImage& image) {
  std::unordered_set<uint64_t> packet_pipes;
  for (const OpenFileImage& file : image.open_files) {
    const bool packets = file.kind == OpenFileKind::kPipe && (file.flags & O_DIRECT) != 0;
    if (packets) packet_pipes.insert(file.object);
  }
  for (size_t position = 0; position < image.open_files.size(); ++position) {
    OpenFileImage& file = image.open_files[position];
    const bool pipe = file.kind == OpenFileKind::kPipe && reads(file.flags);
    const bool unix_socket = file.kind == OpenFileKind::kUnixSocket && !file.socket.listening;
    if (file.outside || (!pipe && !unix_socket)) continue;
    const Source& source = sources_[position];
    const UniqueFd copy = source.table->duplicate(source.entry->fd);
    if (!copy.valid()) continue;
    if (pipe) {
      pipe_reader_.read(copy.get(), packet_pipes.contains(file.object), file);
    } else if (!peek_unix_queue(copy.get(), kQueueBytesMax, file.socket)) {
      source.entry->refused = "descriptors are in flight in it, or it holds too much";
      source.entry->settled = false;
      file.kind = OpenFileKind::kUnsupported;
      file.path = source.entry->link;
    }
  }
}

void Capture::report(const DescriptorCaptureInput& input, const GroupImage& image) const {
  for (size_t position = 0; position < image.open_files.size(); ++position) {
    if (image.open_files[position].kind != OpenFileKind::kUnsupported) continue;
    const Source& source = sources_[position];
    input.refusals->push_back({.pid = source.table->host_pid(),
                               .object = "fd " + std::to_string(source.entry->fd),
                               .kind = source.entry->link,
                               .why = source.entry->refused});
  }
  if (!input.check_threads) return;
  // A thread can leave its process's table by unshare(CLONE_FILES).
  for (const auto& process : input.processes) {
    const auto threads = numeric_entries("/proc/" + std::to_string(process.host_pid) + "/task");
    if (!threads) continue;
    for (const int thread : *threads) {
      const long order = ::syscall(SYS_kcmp, process.host_pid, thread, KCMP_FILES, 0, 0);
      if (order <= 0) continue;
      input.refusals->push_back({.pid = process.host_pid,
                                 .object = "thread " + std::to_string(thread),
                                 .kind = "descriptor table",
                                 .why = "a thread has a descriptor table of its own"});
    }
  }
}

}  // namespace

std::unique_ptr<DescriptorCapture> DescriptorCapture::create() {
  return std::make_unique<Capture>();
}

}  // namespace replpage
