#include "keeper/peer_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"
#include "core/base/unique_fd.h"
#include "core/requirements/file_facts.h"

namespace replpage {
namespace {

constexpr mode_t kDirectoryMode = 0755, kFileMode = 0444;

// A folder below another one; never by a link, which could lead elsewhere.
UniqueFd folder_in(int above, const std::string& name, const std::string& path,
                   std::vector<std::string>& made) {
  if (::mkdirat(above, name.c_str(), kDirectoryMode) == 0) {
    made.push_back(path);
  } else if (errno != EEXIST) {
    throw SysError::from_errno("make a place for a shipped file", on_path(path));
  }
  UniqueFd folder(::openat(above, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder.valid()) {
    throw SysError::from_errno("enter the folder of a shipped file", on_path(path));
  }
  // Whatever the umask is.
  if (!made.empty() && made.back() == path) (void)::fchmod(folder.get(), kDirectoryMode);
  return folder;
}

// Something has to be there for a mount to cover it, and this is seen by everyone on the machine.
void make_place(const std::string& path, std::vector<std::string>& made) {
  UniqueFd folder = open_path("/", O_RDONLY | O_DIRECTORY);
  size_t start = 1;
  for (size_t at = path.find('/', start); at != std::string::npos; at = path.find('/', start)) {
    folder = folder_in(folder.get(), path.substr(start, at - start), path.substr(0, at), made);
    start = at + 1;
  }
  const UniqueFd file(::openat(folder.get(), path.substr(start).c_str(),
                               O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kFileMode));
  if (!file.valid()) throw SysError::from_errno("make a place for a shipped file", on_path(path));
  (void)::fchmod(file.get(), kFileMode);
  made.push_back(path);
}

// Nobody writes to what others may use as well, whatever the flags of the mount it lies on.
void cover(const std::string& path, const std::string& copy) {
  constexpr unsigned long kReadOnly = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NODEV | MS_NOSUID;
  if (::mount(copy.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) != 0 ||
      ::mount(nullptr, path.c_str(), nullptr, kReadOnly, nullptr) != 0) {
    throw SysError::from_errno("put a shipped file in its place", on_path(path));
  }
}

FileIdentity identity_of(const struct stat& status) {
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size = static_cast<uint64_t>(status.st_size),
          .change_time_ns = status.st_ctim.tv_sec * 1'000'000'000 + status.st_ctim.tv_nsec};
}

}  // namespace

void take_back(const std::vector<std::string>& made) {
  for (auto path = made.rbegin(); path != made.rend(); ++path) {
    struct stat status {};
    if (::lstat(path->c_str(), &status) != 0) continue;
    if (S_ISDIR(status.st_mode)) {
      (void)::rmdir(path->c_str());
    } else if (S_ISREG(status.st_mode) && status.st_size == 0) {
      (void)::unlink(path->c_str());
    }
  }
}

std::vector<std::string> PeerFiles::take(const FilesMessage& message) {
  std::vector<std::string> made;
  try {
    take(message, made);
  } catch (...) {
    take_back(made);
    throw;
  }
  return made;
}

void PeerFiles::take(const FilesMessage& message, std::vector<std::string>& made) {
  keep_files_ = message.keep_files;
  for (const PeerFile& file : message.files) {
    if (!file.path.starts_with('/')) throw FormatError("a file of a peer has no absolute path");
    if (!file.copy.empty()) {
      if (::access(file.path.c_str(), F_OK) != 0) make_place(file.path, made);
      cover(file.path, file.copy);
    }
    struct stat status {};
    if (::stat(file.path.c_str(), &status) != 0) {
      throw SysError::from_errno("find a file of the primary here", on_path(file.path));
    }
    Here& here = files_[{file.path, file.inode}];  // told of once for each use
    here.on_network = file.on_network;
    here.for_writing |= file.written;
    here.identity = identity_of(status);
  }
}

const PeerFiles::Here* PeerFiles::find(const std::string& path, uint64_t inode) const {
  const auto known = files_.find({path, inode});
  return known == files_.end() ? nullptr : &known->second;
}

// Times and sizes are of the file there: where it is the same one here, they go on telling.
void PeerFiles::adapt(const std::string& path, FileIdentity& identity) const {
  const Here* here = find(path, identity.inode);
  if (here == nullptr) return;
  const bool one_file = here->identity.inode == identity.inode &&
                        (here->on_network || here->identity.device == identity.device);
  if (one_file) {
    identity.device = here->identity.device;
  } else {
    identity = here->identity;
  }
}

// Its content is not compared: it lies where both machines reach it, or is none. One that was
// compared because it was only read is looked at again when it is written.
void PeerFiles::look_for(const OpenFileImage& file) {
  const bool written = (file.flags & O_ACCMODE) != O_RDONLY && (file.flags & O_PATH) == 0;
  const Here* known = find(file.path, file.identity.inode);
  if (file.identity.inode == 0 || file.outside) return;
  if (known != nullptr && (!written || known->for_writing)) return;
  struct stat status {};
  const bool found = ::stat(file.path.c_str(), &status) == 0;
  const bool is_data = file.kind == OpenFileKind::kRegular && S_ISREG(file.mode);
  if (!found && !is_data) return;  // opening it at the promotion says what is wrong
  if (!found) throw SysError::from_errno("find a file that was opened since", on_path(file.path));
  FileRequirement facts;
  fill_file_facts(status, file.path, facts);
  const bool same = status.st_ino == file.identity.inode &&
                    (facts.on_network || status.st_dev == file.identity.device);
  if (is_data && !same && !keep_files_) {
    throw SysError("use a file that was opened since: it is another one here", ESTALE,
                   on_path(file.path));
  }
  files_[{file.path, file.identity.inode}] = {
      .on_network = facts.on_network, .for_writing = true, .identity = identity_of(status)};
}

// Private pages that were never written come from it: not known, it may be another one here.
void PeerFiles::must_know(const MappingImage& mapping) const {
  const Here* here = find(mapping.path, mapping.inode);
  const bool written = mapping.kind == MappingKind::kFileShared && (mapping.prot & PROT_WRITE) != 0;
  if (here != nullptr && (!written || here->for_writing || keep_files_)) return;
  throw SysError("use a file that was mapped since", ESTALE, on_path(mapping.path));
}

void PeerFiles::adapt(GroupImage& image) {
  if (files_.empty()) return;
  for (const OpenFileImage& file : image.open_files) {
    const bool has_path = file.kind == OpenFileKind::kRegular ||
                          file.kind == OpenFileKind::kDevice || file.kind == OpenFileKind::kFifo;
    if (has_path) look_for(file);
  }
  for (ProcessImage& process : image.processes) {
    for (ThreadImage& thread : process.threads) thread.host_tid = 0;  // nobody's here
    for (MappingImage& mapping : process.mappings) {
      const bool file =
          mapping.kind == MappingKind::kFilePrivate || mapping.kind == MappingKind::kFileShared;
      if (!file) continue;
      must_know(mapping);
      const Here* here = find(mapping.path, mapping.inode);
      mapping.device = here->identity.device;
      mapping.inode = here->identity.inode;
    }
  }
  for (OpenFileImage& file : image.open_files) adapt(file.path, file.identity);
  for (MappedFileImage& file : image.mapped_files) adapt(file.path, file.identity);
}

}  // namespace replpage
