#include "core/requirements/content_hash.h"

#include <elf.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr size_t kHashBytes = 32;
constexpr size_t kChunkBytes = 1u << 20;
constexpr size_t kHeadersMax = 1024;
constexpr size_t kNotesBytesMax = 64 * 1024;

class Hasher {
 public:
  Hasher() : context_(::EVP_MD_CTX_new(), &::EVP_MD_CTX_free) {
    must(context_ && ::EVP_DigestInit_ex(context_.get(), ::EVP_sha256(), nullptr) == 1);
  }
  void add(std::span<const uint8_t> bytes) {
    must(::EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
  }
  Bytes take() {
    Bytes hash(kHashBytes);
    must(::EVP_DigestFinal_ex(context_.get(), hash.data(), nullptr) == 1);
    return hash;
  }

 private:
  static void must(bool done) {
    if (!done) throw SysError("compute SHA-256", EIO);
  }
  std::unique_ptr<EVP_MD_CTX, decltype(&::EVP_MD_CTX_free)> context_;
};

size_t read_at(int fd, uint64_t offset, void* to, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(fd, static_cast<uint8_t*>(to) + done, bytes - done,
                                static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw SysError::from_errno("read a file");
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

template <class T>
std::optional<T> value_at(int fd, uint64_t offset) {
  T value{};
  if (read_at(fd, offset, &value, sizeof value) != sizeof value) return std::nullopt;
  return value;
}

size_t aligned(size_t bytes) { return (bytes + 3) & ~size_t{3}; }

// Every length in it is checked: the file may be anything.
Bytes build_id_in(std::span<const uint8_t> notes) {
  Elf64_Nhdr note{};
  while (notes.size() >= sizeof note) {
    std::memcpy(&note, notes.data(), sizeof note);
    notes = notes.subspan(sizeof note);
    const size_t name = aligned(note.n_namesz), content = aligned(note.n_descsz);
    if (name > notes.size() || note.n_descsz > notes.size() - name) return {};
    const auto id = notes.subspan(name, note.n_descsz);
    if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == sizeof ELF_NOTE_GNU &&
        std::memcmp(notes.data(), ELF_NOTE_GNU, sizeof ELF_NOTE_GNU) == 0) {
      return {id.begin(), id.end()};
    }
    notes = notes.subspan(std::min(notes.size(), name + content));
  }
  return {};
}

}  // namespace

Bytes sha256_of(std::span<const uint8_t> bytes) {
  Hasher hasher;
  hasher.add(bytes);
  return hasher.take();
}

Bytes sha256_of_file(int fd) {
  Hasher hasher;
  Bytes chunk(kChunkBytes);
  for (uint64_t offset = 0;;) {
    const size_t got = read_at(fd, offset, chunk.data(), chunk.size());
    hasher.add(std::span(chunk).first(got));
    offset += got;
    if (got < chunk.size()) return hasher.take();
  }
}

Bytes build_id_of(int fd) {
  const auto header = value_at<Elf64_Ehdr>(fd, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
      header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(Elf64_Phdr)) {
    return {};
  }
  const size_t count = std::min<size_t>(header->e_phnum, kHeadersMax);
  for (size_t i = 0; i < count; ++i) {
    const auto part = value_at<Elf64_Phdr>(fd, header->e_phoff + i * sizeof(Elf64_Phdr));
    if (!part) return {};
    if (part->p_type != PT_NOTE) continue;
    Bytes notes(std::min<size_t>(part->p_filesz, kNotesBytesMax));
    notes.resize(read_at(fd, part->p_offset, notes.data(), notes.size()));
    if (Bytes id = build_id_in(notes); !id.empty()) return id;
  }
  return {};
}

}  // namespace replpage
