#include "core/restore/remote_uffd.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/sys_error.h"

namespace replpage {

size_t add_uffd(uint64_t features, SyscallBatch& batch) {
  const size_t uffd = batch.add("userfaultfd", SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK});
  const uffdio_api api{.api = UFFD_API, .features = features, .ioctls = 0};
  batch.add(
      "userfaultfd handshake", SYS_ioctl,
      {BatchArgument::result_of(uffd), UFFDIO_API, BatchArgument::data(batch.put_value(api))});
  return uffd;
}

UniqueFd take_uffd(ReplicaProcess& process, int remote) {
  const pid_t pid = process.pid();
  const UniqueFd handle(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!handle.valid()) throw SysError::from_errno("pidfd_open", on_pid(pid));
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, handle.get(), remote, 0)));
  if (!fd.valid()) throw SysError::from_errno("take the userfaultfd", on_pid(pid));
  SyscallBatch close;
  close.add("close", SYS_close, {remote});
  process.run(close);
  return fd;
}

}  // namespace replpage
