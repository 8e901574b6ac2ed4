// Offsets of kernel structures, from the type information that the kernel carries (BTF).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace replpage {

struct BtfMember {
  uint32_t offset = 0;  // bytes from the start of the structure
  uint32_t bit = 0;     // of a bit field: lowest bit within the byte at `offset`
};

// Parsed /sys/kernel/btf/vmlinux (Documentation/bpf/btf.rst).
class BtfTypes {
 public:
  // Throws SysError when the kernel has none, FormatError when it is not understood.
  static BtfTypes load();

  // Member by a path such as "real_timer.node.expires"; anonymous structures are looked through.
  // Throws SysError(ENOENT, "structure.path") when this kernel has no such member.
  [[nodiscard]] BtfMember member(std::string_view structure, std::string_view path) const;
  // The same; nullopt where there is none.
  [[nodiscard]] std::optional<BtfMember> find_member(std::string_view structure,
                                                     std::string_view path) const;
  [[nodiscard]] uint32_t offset(std::string_view structure, std::string_view path) const {
    return member(structure, path).offset;
  }
  // Type id of a kernel function for BPF programs ("bpf_..."), nullopt when there is none.
  [[nodiscard]] std::optional<uint32_t> function(std::string_view name) const;

 private:
  struct Found {
    uint32_t bits = 0;  // from the start of the structure
    uint32_t type = 0;
  };
  void index(size_t type_bytes, size_t types_at);
  [[nodiscard]] std::string_view name(uint32_t offset) const;
  [[nodiscard]] uint32_t word(size_t at) const;
  [[nodiscard]] uint32_t resolve(uint32_t type) const;
  [[nodiscard]] std::optional<Found> find(uint32_t type, std::string_view member) const;

  std::string data_;
  size_t strings_at_ = 0;
  std::vector<uint32_t> positions_;  // of each type in data_; [0] is void
  std::unordered_map<std::string_view, uint32_t> structures_, functions_;
};

}  // namespace replpage
