#include "core/restore/shared_objects.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <string>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

void write_all(int fd, std::span<const uint8_t> bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw SysError::from_errno("write a shared object");
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
}

void punch(int fd, uint64_t offset, uint64_t length) {
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) != 0) {
    throw SysError::from_errno("punch a hole into a shared object");
  }
}

// memfd_create(2) takes at most 249 bytes of name.
constexpr size_t kNameMax = 249;

}  // namespace

void SharedObjects::shape(const std::vector<SharedObjectImage>& images) {
  std::map<std::pair<uint64_t, uint64_t>, Object> next;
  by_id_.clear();
  for (const SharedObjectImage& image : images) {
    const std::pair key{image.device, image.inode};
    if (!by_id_.emplace(image.id, key).second) {
      throw FormatError("a shared object's id comes twice");
    }
    auto found = objects_.find(key);
    Object object;
    if (found != objects_.end()) {
      object = std::move(found->second);
    } else {
      object.memfd = UniqueFd(
          ::memfd_create(image.name.substr(0, kNameMax).c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
      if (!object.memfd.valid()) throw SysError::from_errno("memfd_create", on_path(image.name));
    }
    if (object.image.size != image.size &&
        ::ftruncate(object.memfd.get(), static_cast<off_t>(image.size)) != 0) {
      throw SysError::from_errno("resize a shared object", on_path(image.name));
    }
    object.image = image;
    next.emplace(key, std::move(object));
  }
  objects_ = std::move(next);
}

int SharedObjects::memfd(uint64_t device, uint64_t inode) const {
  const auto found = objects_.find({device, inode});
  if (found == objects_.end()) {
    throw SysError("map a shared object with inode " + std::to_string(inode), ENOENT);
  }
  return found->second.memfd.get();
}

void SharedObjects::write(std::span<const PageRun> runs, StagedPages& staged) {
  for (const PageRun& run : runs) {
    const auto key = by_id_.find(run.object);
    if (key == by_id_.end()) throw FormatError("a page run names an unknown object");
    const Object& object = objects_.at(key->second);
    // An object may have shrunk since the page was copied.
    const uint64_t size = page_ceil(object.image.size);
    if (run.address >= size) continue;
    const uint64_t length = std::min(run.length, size - run.address);
    if (run.kind == PageRunKind::kData) {
      const uint64_t inside = std::min(length, object.image.size - run.address);
      write_all(object.memfd.get(), staged.data(run.data_offset, run.length).first(inside),
                run.address);
    } else {
      punch(object.memfd.get(), run.address, length);
    }
  }
}

UniqueFd SharedObjects::reopen(const OpenFileImage& file) const {
  // `object` of a memfd descriptor is the object's id.
  const auto key = by_id_.find(static_cast<uint32_t>(file.object));
  if (key == by_id_.end()) throw FormatError("a memfd names an unknown object");
  const Object& object = objects_.at(key->second);
  const int access = static_cast<int>(file.flags) & (O_ACCMODE | O_APPEND | O_NONBLOCK);
  UniqueFd fd = open_path("/proc/self/fd/" + std::to_string(object.memfd.get()), access);
  if (::lseek(fd.get(), static_cast<off_t>(file.position), SEEK_SET) < 0) {
    throw SysError::from_errno("seek in memfd", on_path(object.image.name));
  }
  return fd;
}

std::vector<ReplicaView::Object> SharedObjects::view() const {
  std::vector<ReplicaView::Object> view;
  for (const auto& [key, object] : objects_) {
    const std::string link = "/proc/self/fd/" + std::to_string(object.memfd.get());
    view.push_back({.id = object.image.id, .memfd = open_path(link, O_RDONLY)});
  }
  return view;
}

void SharedObjects::seal() {
  for (const auto& [key, object] : objects_) {
    // MFD_ALLOW_SEALING was not given when F_SEAL_SEAL is set from the start.
    if (object.image.seals != 0 &&
        ::fcntl(object.memfd.get(), F_ADD_SEALS, object.image.seals) != 0) {
      throw SysError::from_errno("seal memfd", on_path(object.image.name));
    }
  }
}

}  // namespace replpage
