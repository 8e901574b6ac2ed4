#include "core/image/bpf.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "core/base/page.h"
#include "core/base/sys_error.h"

namespace replpage::bpf {
namespace {

UniqueFd call(int command, bpf_attr& attributes) {
  return UniqueFd(static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes)));
}

UniqueFd load(bpf_attr& attributes, std::span<const Instruction> program) {
  static constexpr char kLicense[] = "GPL";  // the kernel's helpers ask for it
  attributes.insn_cnt = static_cast<uint32_t>(program.size());
  attributes.insns = reinterpret_cast<uint64_t>(program.data());
  attributes.license = reinterpret_cast<uint64_t>(kLicense);
  UniqueFd loaded = call(BPF_PROG_LOAD, attributes);
  if (!loaded.valid()) throw SysError::from_errno("load a BPF program");
  return loaded;
}

}  // namespace

UniqueFd load_program(bpf_prog_type type, uint32_t flags, std::span<const Instruction> program) {
  bpf_attr attributes{};
  attributes.prog_type = type;
  attributes.prog_flags = flags;
  return load(attributes, program);
}

UniqueFd load_iterator(uint32_t function, std::span<const Instruction> program) {
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_TRACING;
  attributes.expected_attach_type = BPF_TRACE_ITER;
  attributes.attach_btf_id = function;
  return load(attributes, program);
}

UniqueFd iterate_task(const UniqueFd& program, uint32_t tid) {
  bpf_iter_link_info which{};
  which.task.tid = tid;
  bpf_attr attributes{};
  attributes.link_create.prog_fd = static_cast<uint32_t>(program.get());
  attributes.link_create.attach_type = BPF_TRACE_ITER;
  attributes.link_create.iter_info = reinterpret_cast<uint64_t>(&which);
  attributes.link_create.iter_info_len = sizeof which;
  const UniqueFd link = call(BPF_LINK_CREATE, attributes);
  if (!link.valid() && errno == ESRCH) return {};
  if (!link.valid()) throw SysError::from_errno("link a BPF iterator");
  attributes = {};
  attributes.iter_create.link_fd = static_cast<uint32_t>(link.get());
  UniqueFd iteration = call(BPF_ITER_CREATE, attributes);
  if (!iteration.valid()) throw SysError::from_errno("create a BPF iterator");
  return iteration;
}

UniqueFd attach_to_tracepoint(const char* name, const UniqueFd& program) {
  bpf_attr attributes{};
  attributes.raw_tracepoint.name = reinterpret_cast<uint64_t>(name);
  attributes.raw_tracepoint.prog_fd = static_cast<uint32_t>(program.get());
  UniqueFd attached = call(BPF_RAW_TRACEPOINT_OPEN, attributes);
  if (!attached.valid()) throw SysError::from_errno("attach a BPF program", on_path(name));
  return attached;
}

SharedArea::SharedArea(size_t bytes) : bytes_(page_ceil(bytes)) {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = sizeof(uint32_t);
  attributes.value_size = static_cast<uint32_t>(bytes);
  attributes.max_entries = 1;
  attributes.map_flags = BPF_F_MMAPABLE;
  map_ = call(BPF_MAP_CREATE, attributes);
  if (!map_.valid()) throw SysError::from_errno("create a BPF map");
  data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, map_.get(), 0);
  if (data_ == MAP_FAILED) throw SysError::from_errno("map a BPF map");
  (void)::madvise(data_, bytes_, MADV_DONTFORK);  // ours alone
}

SharedArea::~SharedArea() { ::munmap(data_, bytes_); }

}  // namespace replpage::bpf
