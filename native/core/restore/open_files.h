// The open files of a group in the keeper, before they are moved into the replica's processes.
#pragma once

#include <map>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/restore/moved_address.h"
#include "core/restore/replica.h"

namespace replpage {

// A file that a replica's processes will hold.
struct ReadyFile {
  int fd = -1;           // in the keeper; -1: no descriptor of the image needs it
  bool handed = false;   // the dying process's own, otherwise made anew
  int watched_old = -1;  // made anew, but watches in handed epolls still name this old one
};

class OpenFiles {
 public:
  // Takes over what was handed and makes the rest. Throws SysError naming the open file.
  explicit OpenFiles(const PromoteInput& input);

  [[nodiscard]] const ReadyFile& at(uint32_t position) const { return ready_.at(position); }

 private:
  void adopt(uint32_t position);
  void make(uint32_t position);
  void make_paired_sockets();
  void settle(uint32_t position, UniqueFd file, bool set_position);
  [[nodiscard]] bool needed(uint32_t position) const { return needed_[position]; }
  [[nodiscard]] bool can_adopt(uint32_t position) const;
  [[nodiscard]] UniqueFd make_by_kind(uint32_t position);
  [[nodiscard]] UniqueFd make_outside_stream(const OpenFileImage& file) const;
  [[nodiscard]] UniqueFd make_pipe_end(const OpenFileImage& file);
  [[nodiscard]] UniqueFd make_deleted(const OpenFileImage& file);

  struct Pipe {
    UniqueFd read, write;
    bool read_given = false, write_given = false;
  };

  UniqueFd tcp(const OpenFileImage& file);

  const PromoteInput& input_;
  const std::vector<OpenFileImage>& files_;
  std::vector<bool> needed_;
  std::vector<ReadyFile> ready_;
  std::vector<UniqueFd> made_;
  std::map<uint64_t, Pipe> pipes_;         // by OpenFileImage::object
  std::map<uint64_t, UniqueFd> nameless_;  // deleted files by inode
};

// Recreations, one kind each. All throw SysError and return a close-on-exec descriptor whose status
// flags and position are not set yet.
namespace recreate {

// Regular files, directories, devices and named pipes. A file that is not the one the epoch had
// open is ESTALE unless `keep_files`.
UniqueFd by_path(const OpenFileImage& file, bool keep_files);
UniqueFd event_counter(const OpenFileImage& file);
// `since_ns`: how long ago the image was taken.
UniqueFd timer(const OpenFileImage& file, uint64_t since_ns);
UniqueFd signal_set(const OpenFileImage& file);
UniqueFd notifier(const OpenFileImage& file);
UniqueFd process_handle(const OpenFileImage& file);

// Unnamed file in the directory of `path`, or where that cannot be had in /tmp.
UniqueFd nameless_file(const OpenFileImage& file);
// Opens what `file` refers to once more, as a description of its own.
UniqueFd reopened(int file, uint32_t flags);

// Both ends, with the content of `reader`.
void pipe(const OpenFileImage& reader, UniqueFd& read_end, UniqueFd& write_end);

// A connection of TCP lives on where the image has all of it and its address is here, else it
// becomes one that was reset; one of UNIX to outside one that was closed.
UniqueFd tcp(const OpenFileImage& file);
// Its parts, for connections whose address is not open yet (see MovedAddress).
UniqueFd connection(const SocketState& state, TcpConnection& connection);
void revive(int socket, const TcpConnection& connection, const SocketState& state);
UniqueFd udp(const OpenFileImage& file);
UniqueFd netlink(const OpenFileImage& file);
UniqueFd unix_single(const OpenFileImage& file);
// `second` may be null: the peer was closed, only the first one's queue is left.
void unix_pair(const OpenFileImage& first, const OpenFileImage* second, UniqueFd& one,
               UniqueFd& other);

}  // namespace recreate
}  // namespace replpage
