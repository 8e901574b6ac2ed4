#include "core/image/btf_types.h"

#include <linux/btf.h>

#include <cstring>

#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr const char* kPath = "/sys/kernel/btf/vmlinux";
constexpr std::string_view kFunctionPrefix = "bpf_";
constexpr size_t kTypeBytes = sizeof(btf_type);
// Newer than Debian 12's headers.
constexpr uint32_t kKindDeclTag = 17, kKindTypeTag = 18, kKindEnum64 = 19;

struct TypeHead {
  uint32_t name = 0, info = 0, size_or_type = 0;
  [[nodiscard]] uint32_t kind() const { return (info >> 24) & 0x1F; }
  [[nodiscard]] uint32_t count() const { return info & 0xFFFF; }
  [[nodiscard]] bool has_bit_fields() const { return info >> 31 != 0; }
};

// Bytes behind the head of a type.
size_t tail_bytes(const TypeHead& head) {
  switch (head.kind()) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case kKindDeclTag:
      return 4;
    case BTF_KIND_ARRAY:
      return sizeof(btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
    case BTF_KIND_DATASEC:
    case kKindEnum64:
      return 12 * size_t{head.count()};
    case BTF_KIND_ENUM:
    case BTF_KIND_FUNC_PROTO:
      return 8 * size_t{head.count()};
    default:
      return 0;
  }
}

TypeHead head_at(const std::string& data, size_t at) {
  if (at + kTypeBytes > data.size()) throw FormatError("BTF is truncated");
  TypeHead head;
  std::memcpy(&head, data.data() + at, sizeof head);
  return head;
}

bool is_record(uint32_t kind) { return kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION; }

}  // namespace

BtfTypes BtfTypes::load() {
  BtfTypes types;
  auto text = read_proc(kPath);
  if (!text) throw SysError("read kernel type information", ENOENT, on_path(kPath));
  types.data_ = std::move(*text);
  btf_header header{};
  if (types.data_.size() < sizeof header) throw FormatError("BTF is truncated");
  std::memcpy(&header, types.data_.data(), sizeof header);
  if (header.magic != BTF_MAGIC || header.version != BTF_VERSION) {
    throw FormatError("BTF of an unknown version");
  }
  types.strings_at_ = size_t{header.hdr_len} + header.str_off;
  types.index(header.type_len, size_t{header.hdr_len} + header.type_off);
  return types;
}

void BtfTypes::index(size_t type_bytes, size_t types_at) {
  positions_.reserve(type_bytes / (2 * kTypeBytes));
  positions_.push_back(0);
  for (size_t at = types_at; at < types_at + type_bytes;) {
    const TypeHead head = head_at(data_, at);
    const auto id = static_cast<uint32_t>(positions_.size());
    positions_.push_back(static_cast<uint32_t>(at));
    if (head.kind() == BTF_KIND_STRUCT && head.name != 0) structures_.emplace(name(head.name), id);
    if (head.kind() == BTF_KIND_FUNC && name(head.name).starts_with(kFunctionPrefix)) {
      functions_.emplace(name(head.name), id);
    }
    at += kTypeBytes + tail_bytes(head);
  }
}

std::string_view BtfTypes::name(uint32_t offset) const {
  if (strings_at_ + offset >= data_.size()) throw FormatError("BTF names are truncated");
  return data_.c_str() + strings_at_ + offset;
}

uint32_t BtfTypes::word(size_t at) const {
  if (at + sizeof(uint32_t) > data_.size()) throw FormatError("BTF is truncated");
  uint32_t value = 0;
  std::memcpy(&value, data_.data() + at, sizeof value);
  return value;
}

// Looks through typedef, const, volatile, restrict and tags.
uint32_t BtfTypes::resolve(uint32_t type) const {
  while (type != 0 && type < positions_.size()) {
    const TypeHead head = head_at(data_, positions_[type]);
    const uint32_t kind = head.kind();
    const bool alias = kind == BTF_KIND_TYPEDEF || kind == BTF_KIND_CONST ||
                       kind == BTF_KIND_VOLATILE || kind == BTF_KIND_RESTRICT ||
                       kind == kKindTypeTag;
    if (!alias) break;
    type = head.size_or_type;
  }
  return type;
}

std::optional<BtfTypes::Found> BtfTypes::find(uint32_t type, std::string_view wanted) const {
  type = resolve(type);
  if (type == 0 || type >= positions_.size()) return std::nullopt;
  const TypeHead head = head_at(data_, positions_[type]);
  if (!is_record(head.kind())) return std::nullopt;
  for (uint32_t i = 0; i < head.count(); ++i) {
    const size_t at = positions_[type] + kTypeBytes + size_t{i} * sizeof(btf_member);
    const uint32_t raw = word(at + 8);
    const Found found{.bits = head.has_bit_fields() ? raw & 0xFFFFFF : raw, .type = word(at + 4)};
    const std::string_view member = name(word(at));
    if (member == wanted) return found;
    if (!member.empty()) continue;
    if (const auto inner = find(found.type, wanted)) {
      return Found{.bits = found.bits + inner->bits, .type = inner->type};
    }
  }
  return std::nullopt;
}

BtfMember BtfTypes::member(std::string_view structure, std::string_view path) const {
  const auto found = find_member(structure, path);
  if (found) return *found;
  throw SysError("find a member of a kernel structure", ENOENT,
                 on_path(std::string(structure) + "." + std::string(path)));
}

std::optional<BtfMember> BtfTypes::find_member(std::string_view structure,
                                               std::string_view path) const {
  const auto known = structures_.find(structure);
  if (known == structures_.end()) return std::nullopt;
  Found at{.bits = 0, .type = known->second};
  for (std::string_view left = path; !left.empty();) {
    const size_t end = std::min(left.find('.'), left.size());
    const auto next = find(at.type, left.substr(0, end));
    if (!next) return std::nullopt;
    at = {.bits = at.bits + next->bits, .type = next->type};
    left.remove_prefix(std::min(end + 1, left.size()));
  }
  return BtfMember{.offset = at.bits / 8, .bit = at.bits % 8};
}

std::optional<uint32_t> BtfTypes::function(std::string_view name) const {
  const auto known = functions_.find(name);
  if (known == functions_.end()) return std::nullopt;
  return known->second;
}

}  // namespace replpage
