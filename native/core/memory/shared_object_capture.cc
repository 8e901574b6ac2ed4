#include <algorithm>
#include <map>
#include <utility>

#include "core/base/sys_error.h"
#include "core/memory/memory_capture.h"
#include "core/memory/memory_map.h"
#include "core/memory/memory_thread.h"
#include "core/memory/pagemap_scan.h"
#include "core/memory/shared_object_file.h"

namespace replpage {
namespace {

using ObjectKey = std::pair<uint64_t, uint64_t>;  // device, inode

ObjectKey key_of(const MappingImage& mapping) { return {mapping.device, mapping.inode}; }
ObjectKey key_of(const SharedObjectImage& object) { return {object.device, object.inode}; }

// A shared mapping of an object by a process that is tracked.
struct Window {
  pid_t host_pid = 0;
  MemoryCapture* memory = nullptr;
  MappingImage mapping;
};

bool covers(const Window& now, const Window& before) {
  return now.host_pid == before.host_pid && now.memory == before.memory &&
         now.mapping.start <= before.mapping.start && now.mapping.end >= before.mapping.end &&
         now.mapping.offset - now.mapping.start == before.mapping.offset - before.mapping.start;
}

// Ranges of the object as addresses of the mapping, and back.
PageRanges addresses_of(const MappingImage& mapping, std::span<const PageRange> in_object) {
  const PageRange seen = {mapping.offset, mapping.offset + (mapping.end - mapping.start)};
  PageRanges result = intersect_ranges(in_object, {&seen, 1});
  for (PageRange& range : result) {
    range.start = range.start - mapping.offset + mapping.start;
    range.end = range.end - mapping.offset + mapping.start;
  }
  return result;
}

PageRanges offsets_of(const MappingImage& mapping, PageRanges addresses) {
  for (PageRange& range : addresses) {
    range.start = range.start - mapping.start + mapping.offset;
    range.end = range.end - mapping.start + mapping.offset;
  }
  return addresses;
}

struct Object {
  std::optional<SharedObjectFile> file;
  std::vector<Window> windows;  // at the last copy
  PageRanges extents;           // at the last copy
  PageRanges left_behind;       // written, and not to be seen at the next look any more
  uint32_t id = 0;              // SharedObjectImage::id
  bool copy_all = true;
};

class Implementation : public SharedObjectCapture {
 public:
  CopyRound copy_changed(const std::vector<ProcessView>& processes,
                         const std::vector<SharedObjectImage>& objects, PageSink& sink) override;
  void note_exit(pid_t host_pid, MemoryCapture* memory) noexcept override;
  void copy_again(uint32_t object, PageRange part) noexcept override;
  void copy_all_again() noexcept override {
    for (auto& [key, object] : objects_) object.copy_all = true;
  }

 private:
  static std::vector<Window> windows_of(const std::vector<ProcessView>& processes, ObjectKey key);
  static bool open(Object& object, const std::vector<ProcessView>& processes,
                   const SharedObjectImage& image);
  static void copy_object(Object& object, std::vector<Window> windows,
                          const SharedObjectImage& image, PageSink& sink, CopyRound& round);
  void note_mapping(const MappingImage& mapping, pid_t host_pid, MemoryCapture* memory);

  std::map<ObjectKey, Object> objects_;
};

std::vector<Window> Implementation::windows_of(const std::vector<ProcessView>& processes,
                                               ObjectKey key) {
  std::vector<Window> windows;
  for (const ProcessView& process : processes) {
    if (process.memory == nullptr) continue;
    for (const MappingImage& mapping : process.image->mappings) {
      if (mapping.kind == MappingKind::kSharedObject && key_of(mapping) == key) {
        windows.push_back({process.host_pid, process.memory, mapping});
      }
    }
  }
  return windows;
}

bool Implementation::open(Object& object, const std::vector<ProcessView>& processes,
                          const SharedObjectImage& image) {
  for (const ProcessView& process : processes) {
    for (const MappingImage& mapping : process.image->mappings) {
      const bool maps =
          mapping.kind == MappingKind::kSharedObject || mapping.kind == MappingKind::kMemfdPrivate;
      if (!maps || key_of(mapping) != key_of(image)) continue;
      object.file = SharedObjectFile::open_mapping(process.host_pid, mapping);
      if (object.file) return true;
    }
  }
  for (const ProcessView& process : processes) {
    object.file = SharedObjectFile::open_descriptor(process.host_pid, image);
    if (object.file) return true;
  }
  return false;
}

CopyRound Implementation::copy_changed(const std::vector<ProcessView>& processes,
                                       const std::vector<SharedObjectImage>& objects,
                                       PageSink& sink) {
  CopyRound round;
  std::erase_if(objects_, [&objects](const auto& entry) {
    return std::none_of(objects.begin(), objects.end(), [&entry](const SharedObjectImage& image) {
      return key_of(image) == entry.first;
    });
  });
  for (const SharedObjectImage& image : objects) {
    Object& object = objects_[key_of(image)];
    if (!object.file && !open(object, processes, image)) {
      // Gone while the process runs. The next round has a newer image.
      object.copy_all = true;
      continue;
    }
    copy_object(object, windows_of(processes, key_of(image)), image, sink, round);
  }
  return round;
}

void Implementation::copy_object(Object& object, std::vector<Window> windows,
                                 const SharedObjectImage& image, PageSink& sink, CopyRound& round) {
  const bool lost_window =
      std::any_of(object.windows.begin(), object.windows.end(), [&windows](const Window& before) {
        return std::none_of(windows.begin(), windows.end(),
                            [&before](const Window& now) { return covers(now, before); });
      });
  bool everything = std::exchange(object.copy_all, true) || lost_window;
  // Without a descriptor nobody can change it but through mappings, whose faults set its times too.
  if (image.is_memfd && object.file->changed_otherwise()) everything = true;
  const PageRanges extents = object.file->extents();
  PageRanges written = object.left_behind;
  object.id = image.id;
  // Looking arms, so it comes before reading, and also when everything is copied anyway.
  for (const Window& window : windows) {
    const PageRanges parts = addresses_of(window.mapping, extents);
    PageRanges addresses = window.memory->look_shared(window.mapping, parts);
    written = unite_ranges(written, offsets_of(window.mapping, std::move(addresses)));
  }
  // Looking begins anew: should the copy not succeed, it is owed.
  object.left_behind = written;
  object.copy_all = everything;
  PageCopier copier(0, image.id);
  const PageRange whole = {0, page_ceil(image.size)};
  const PageRanges holes =
      everything ? subtract_ranges({&whole, 1}, extents) : subtract_ranges(object.extents, extents);
  for (const PageRange& hole : holes) copier.add_absent(hole, sink, round);
  written = everything ? extents : intersect_ranges(written, extents);
  copier.copy(intersect_ranges(written, {&whole, 1}), *object.file, sink, round);
  round.mapped_bytes += total_bytes(extents);
  object.windows = std::move(windows);
  object.extents = extents;
  object.left_behind.clear();
  object.copy_all = false;
}

void Implementation::copy_again(uint32_t id, PageRange part) noexcept {
  for (auto& [key, object] : objects_) {
    if (object.id == id) object.left_behind = unite_ranges(object.left_behind, {&part, 1});
  }
}

void Implementation::note_exit(pid_t host_pid, MemoryCapture* memory) noexcept {
  if (objects_.empty()) return;
  try {
    const auto mappings = read_memory_map(host_pid, {}, false, nullptr);
    if (!mappings) {
      copy_all_again();
      return;
    }
    for (const MappingImage& mapping : *mappings) {
      if (mapping.kind == MappingKind::kSharedObject) note_mapping(mapping, host_pid, memory);
    }
  } catch (const std::exception&) {
    copy_all_again();
  }
}

void Implementation::note_mapping(const MappingImage& mapping, pid_t host_pid,
                                  MemoryCapture* memory) {
  const auto entry = objects_.find(key_of(mapping));
  if (entry == objects_.end() || entry->second.copy_all || !entry->second.file) return;
  Object& object = entry->second;
  PageRanges written;
  if (memory != nullptr) {
    written = memory->look_shared(mapping, addresses_of(mapping, object.file->extents()));
  } else {
    // Never armed: every page it ever touched may have been written.
    const auto tid = memory_thread(host_pid);
    if (!tid) throw SysError("look at the memory", ESRCH, on_pid(host_pid));
    PagemapScan pages(host_pid, *tid);
    pages.collect(mapping.range(), {.any_of = kPagePresent | kPageSwapped}, written);
  }
  object.left_behind = unite_ranges(object.left_behind, offsets_of(mapping, std::move(written)));
  std::erase_if(object.windows, [&](const Window& window) {
    return window.host_pid == host_pid && window.mapping.start == mapping.start;
  });
}

}  // namespace

std::unique_ptr<SharedObjectCapture> SharedObjectCapture::create() {
  return std::make_unique<Implementation>();
}

}  // namespace replpage
