// What this kernel and this process's rights offer, found by trying, never by version numbers.
#pragma once

#include <string>
#include <variant>
#include <vector>

namespace replpage {

struct KernelFeature {
  std::string name;  // a key of `replpage doctor --json`
  std::variant<bool, int, std::string> value;
};

// Probes that need nothing but system calls; those of the dirty trackers are with the trackers.
// Makes short-lived children and changes nothing that outlives the call. Takes some milliseconds.
//
//   pagemapScan        PAGEMAP_SCAN of /proc/PID/pagemap
//   pidfdGetfd         descriptors can be taken out of a process
//   setTid             processes with chosen ids (clone3 set_tid: CAP_CHECKPOINT_RESTORE)
//   rseqConfiguration  PTRACE_GET_RSEQ_CONFIGURATION
//   idleBitmap         /sys/kernel/mm/page_idle/bitmap can be read
//   bpf, btf           the bpf system call works; the kernel describes its types
//   damonInUse         a kdamond runs: DAMON belongs to somebody else
//   tcpRepair          TCP_REPAIR of tcp(7)
//   cgroup             "v1", "v2", "v1 and v2" or "none"
//   yamaScope          kernel.yama.ptrace_scope, where the kernel has that module
//   capSysPtrace, capSysAdmin, capSysResource, capNetAdmin   rights of this process
std::vector<KernelFeature> probe_kernel_features();

}  // namespace replpage
