#include "pager/checkpoint_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

void read_all(int file, uint64_t offset, std::span<uint8_t> into) {
  while (!into.empty()) {
    const ssize_t got = ::pread(file, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw SysError("read the state of a checkpoint", got == 0 ? ENODATA : errno);
    offset += static_cast<uint64_t>(got);
    into = into.subspan(static_cast<size_t>(got));
  }
}

void write_all(int file, uint64_t offset, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) throw SysError("hand over pages of a checkpoint", put == 0 ? EIO : errno);
    offset += static_cast<uint64_t>(put);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
}

// In records of no process.
void append_state(SegmentWriter& writer, CheckpointManifest& manifest, int state) {
  std::vector<uint8_t> room(kStateChunkBytes);
  manifest.state.clear();
  for (uint64_t at = 0; at < manifest.state_bytes; at += kStateChunkBytes) {
    const uint64_t bytes = std::min(kStateChunkBytes, manifest.state_bytes - at);
    std::fill(room.begin(), room.end(), uint8_t{0});
    read_all(state, at, std::span(room).first(bytes));
    const auto pages = std::span(room).first(page_ceil(bytes));
    manifest.state.push_back(writer.append(0, at, manifest.epoch, pages).pack());
  }
  writer.sync();
  for (const uint64_t location : manifest.state) {
    manifest.segments.push_back(segment_of(location));
  }
  std::sort(manifest.segments.begin(), manifest.segments.end());
  const auto last = std::unique(manifest.segments.begin(), manifest.segments.end());
  manifest.segments.erase(last, manifest.segments.end());
}

}  // namespace

WrittenCheckpoint make_checkpoint(SegmentWriter& writer, const CheckpointOrder& order) {
  auto manifest = decode<CheckpointManifest>(order.message.manifest);
  try {
    append_state(writer, manifest, order.state);
  } catch (...) {
    writer.discard();
    throw;
  }
  StoreOptions options = order.store;
  const UniqueFd store = open_store(options);
  const WrittenCheckpoint written =
      write_checkpoint(store.get(), options.path, writer.directory(), manifest, order.key);
  if (!order.message.keep) {
    remove_other_checkpoints(store.get(), options.path, manifest.name, written.id);
  }
  writer.count_checkpoints();
  return written;
}

CheckpointPages::CheckpointPages(const StoreOptions& store, const std::string& group,
                                 const std::string& id, const StoreKey* key)
    : found_([&] {
        const UniqueFd opened = open_store(store);
        return find_checkpoint(opened.get(), store.path, group, id, key);
      }()) {
  UniqueFd directory(::fcntl(found_.directory.get(), F_DUPFD_CLOEXEC, 0));
  if (!directory.valid()) throw SysError::from_errno("duplicate the directory of a checkpoint");
  const CheckpointManifest& manifest = found_.manifest;
  reader_ = std::make_unique<SegmentReader>(
      std::move(directory),
      ReaderOptions{
          .path = store.path,
          .of = {.group = group, .group_id = manifest.group_id, .generation = manifest.generation},
          .key = key});
}

void CheckpointPages::fetch(const std::vector<PagerFetchRun>& runs, int target) {
  std::vector<uint8_t> content;
  for (const PagerFetchRun& run : runs) {
    if (run.pages == 0 || run.pages > kRecordPagesLimit || run.reserved != 0) {
      throw FormatError("the pager was asked for a run that is none");
    }
    content.resize(run.pages * kPageSize);
    reader_->read(run.location, content);
    write_all(target, run.offset, content);
  }
}

}  // namespace replpage
