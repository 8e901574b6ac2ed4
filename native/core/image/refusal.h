// What cannot be replicated, found before protection starts (rule 5).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace replpage {

struct Refusal {
  int32_t pid = 0;
  std::string object;  // "fd 7", "mapping 0x7f..-0x7f..", "thread 123"
  std::string kind;    // "io_uring", "device mapping", "seccomp filter"
  std::string why;     // one sentence for the user
};

using Refusals = std::vector<Refusal>;

}  // namespace replpage
