// What a process that runs on a machine has built upon, so that it cannot run on every other:
// processor, kernel and their limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/base/archive.h"

namespace replpage {

// Bits of one register of the CPUID instruction.
struct CpuidWord {
  uint32_t leaf = 0, subleaf = 0;
  uint32_t output = 0;  // 0 eax, 1 ebx, 2 ecx, 3 edx
  uint32_t bits = 0;    // of those that kCpuFeatures names
  template <class A>
  void visit(A& a) {
    a(leaf, subleaf, output, bits);
  }
};

// A part of the XSAVE area in its standard format, CPUID leaf 0xD.
struct XstateComponent {
  uint32_t number = 0, offset = 0, size = 0;  // bit in XCR0; bytes
  template <class A>
  void visit(A& a) {
    a(number, offset, size);
  }
  bool operator==(const XstateComponent&) const = default;
};

struct MachineFacts {
  std::string system, release, architecture;  // uname(2): "Linux", "6.18.44", "x86_64"
  uint32_t page_bytes = 0;
  std::vector<CpuidWord> cpu;
  uint64_t hardware_capabilities = 0;  // AT_HWCAP2: what the kernel lets programs use
  uint32_t xstate_bytes = 0;           // whole area, with all that the kernel has switched on
  std::vector<XstateComponent> xstate;
  Bytes vdso_sha256;  // of the code that every process has mapped; empty: there is none
  uint32_t vdso_bytes = 0, vvar_bytes = 0;
  uint64_t pid_max = 0, mappings_max = 0, descriptors_max = 0;  // 0: not known
  int32_t ptrace_scope = -1;                                    // of Yama; -1: not there
  template <class A>
  void visit(A& a) {
    a(system, release, architecture, page_bytes, cpu, hardware_capabilities, xstate_bytes, xstate,
      vdso_sha256, vdso_bytes, vvar_bytes, pid_max, mappings_max, descriptors_max, ptrace_scope);
  }
};

// Of this machine. Takes some 100 us. Throws SysError.
MachineFacts read_machine_facts();

// Names of features that `used` has and `here` lacks, as /proc/cpuinfo spells them.
std::vector<std::string> lacking_features(const MachineFacts& used, const MachineFacts& here);

}  // namespace replpage
