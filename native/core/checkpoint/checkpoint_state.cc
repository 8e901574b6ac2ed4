#include "core/checkpoint/checkpoint_state.h"

#include <sys/utsname.h>

#include <algorithm>

#include "core/base/sys_error.h"
#include "core/store/store_location.h"

namespace replpage {
namespace {

void must(bool holds, const char* what) {
  if (!holds) throw FormatError(std::string("checkpoint: ") + what);
}

bool is_mapped(const std::vector<MappingImage>& mappings, uint64_t start, uint64_t end) {
  for (const MappingImage& mapping : mappings) {
    if (mapping.start <= start && start < mapping.end) start = mapping.end;
    if (start >= end) return true;
  }
  return false;
}

bool has_pages(const CheckpointState& state, const PageRun& run) {
  const uint64_t end = run.address + run.length;
  if (run.pid < 0) {
    const auto& objects = state.image.shared_objects;
    return std::any_of(objects.begin(), objects.end(), [&](const SharedObjectImage& object) {
      return object.id == object_of_pid(run.pid) && end <= page_ceil(object.size);
    });
  }
  return std::any_of(
      state.image.processes.begin(), state.image.processes.end(), [&](const ProcessImage& process) {
        return process.pid == run.pid && is_mapped(process.mappings, run.address, end);
      });
}

void check_run(const CheckpointState& state, const PageRun& run) {
  must(run.length != 0 && run.length % kPageSize == 0 && run.address % kPageSize == 0 &&
           run.address + run.length > run.address,
       "a run of pages has an impossible range");
  must(run.pid != 0 && run.object == 0 && has_pages(state, run), "a run of pages is of nobody");
  if (run.kind == PageRunKind::kZero) return;
  const auto location = StoreLocation::unpack(run.data_offset);
  must(run.kind == PageRunKind::kCold && location.has_value() &&
           location->content_offset + run.length <= kRecordPagesLimit * kPageSize,
       "a run of pages has an impossible location");
}

}  // namespace

void check_checkpoint_state(const CheckpointState& state) {
  must(!state.image.processes.empty(), "it has no process");
  for (const PageRun& run : state.pages.runs) check_run(state, run);
}

std::string kernel_name() {
  utsname name{};
  if (::uname(&name) != 0) throw SysError::from_errno("uname");
  return std::string(name.sysname) + " " + name.release + " " + name.version + " " + name.machine;
}

}  // namespace replpage
