// Files of this machine that stand for those of a primary on another one.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/channel/messages.h"
#include "core/image/group_image.h"

namespace replpage {

// Removes what was made, last first, as far as nobody has put anything there.
void take_back(const std::vector<std::string>& made);

class PeerFiles {
 public:
  // Puts copies in their places in the caller's mount namespace, where nobody else sees them, and
  // remembers what lies there. Returns what it had to make outside of that namespace. Throws
  // SysError naming the path.
  std::vector<std::string> take(const FilesMessage& message);

  // Says in the image which files here are meant. Throws SysError for a mapping of a file that
  // take() was never told of, and for data that was opened since, or is written since, and is not
  // the same file here: a replica that is built anew is told why.
  // Nothing is changed where none is known.
  void adapt(GroupImage& image);

 private:
  struct Here {
    bool on_network = false;
    bool for_writing = false;  // what is written to it reaches the other machine, or need not
    FileIdentity identity;     // here
  };

  void take(const FilesMessage& message, std::vector<std::string>& made);
  [[nodiscard]] const Here* find(const std::string& path, uint64_t inode) const;
  void adapt(const std::string& path, FileIdentity& identity) const;
  void look_for(const OpenFileImage& file);
  void must_know(const MappingImage& mapping) const;

  bool keep_files_ = false;
  std::map<std::pair<std::string, uint64_t>, Here> files_;  // by path, and number there
};

}  // namespace replpage
