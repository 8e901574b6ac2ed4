// The namespaces a replica lives in.
#pragma once

#include <sys/types.h>

namespace replpage {

// CLONE_NEW* of those namespaces (mount, net, ipc, uts, cgroup) of the process that are not the
// caller's. Throws SysError.
int namespaces_to_enter(pid_t host_pid);

// Enters them, then makes the mount namespace the caller's own, where mounts from outside still
// arrive and none of its own leave, and mounts a /proc of the caller's PID namespace there.
// The caller must have one thread. Throws SysError.
void enter_namespaces(int pidfd, int namespaces);

// A network with nothing but the loopback interface, where any address may be had, and IPC of its
// own. Throws SysError.
void cut_off();

}  // namespace replpage
