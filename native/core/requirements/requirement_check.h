// Compares what a group needs with what this machine has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/requirements/requirements.h"

namespace replpage {

enum class UnmetKind : uint8_t {
  kFileMissing = 1,  // may be shipped where it is mapped
  kFileDiffers = 2,  // may be shipped where it is mapped
  kDataFile = 3,     // open data that is not the same here
  kDevice = 4,
  kProcessor = 5,
  kXstate = 6,
  kVdso = 7,
  kMachine = 8,  // architecture, page size
  kLimit = 9,    // of the kernel's settings
  kBound = 10,   // it exists on the primary's machine only
};

// One thing that this machine lacks, for the user.
struct Unmet {
  UnmetKind kind{};
  std::string what;   // "/usr/lib/libz.so.1", "avx512f", "XSAVE area"
  std::string where;  // what of the group has it: "mapped", "open", "processor"
  std::string why;    // one sentence
  std::string remedy;
  int32_t file = -1;  // position in Requirements::files of one that could be shipped
};

struct CheckRules {
  bool keep_files = false;  // --files keep: data files need not be the same ones
};

// `here`: read_machine_facts() of this machine. Files are looked at below the caller's root. Reads
// files whole where no build id tells, so nothing for a thread that others wait for. Empty: a
// replica can be built and promoted here. Throws SysError.
std::vector<Unmet> check_requirements(const Requirements& wanted, const MachineFacts& here,
                                      const CheckRules& rules, HashCache& cache);

}  // namespace replpage
