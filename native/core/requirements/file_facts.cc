#include "core/requirements/file_facts.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>

namespace replpage {
namespace {

// Those that several machines mount at once; statfs(2), and magic numbers that it does not name.
constexpr auto kNetworkKinds = std::to_array<uint32_t>({
    NFS_SUPER_MAGIC, SMB_SUPER_MAGIC,
    0xFF534D42,  // CIFS
    0xFE534D42,  // SMB2
    CODA_SUPER_MAGIC, AFS_SUPER_MAGIC, V9FS_MAGIC, FUSE_SUPER_MAGIC, CEPH_SUPER_MAGIC,
    OCFS2_SUPER_MAGIC,
    0x01161970,  // GFS2
    0x0BD00BD0,  // Lustre
    0x47504653,  // GPFS
});

}  // namespace

void fill_file_facts(const struct stat& status, const std::string& path, FileRequirement& file) {
  file.type = status.st_mode & S_IFMT;
  file.device = status.st_dev;
  file.inode = status.st_ino;
  file.size = S_ISREG(status.st_mode) ? static_cast<uint64_t>(status.st_size) : 0;
  file.modified_ns = status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
  if (S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode)) file.special = status.st_rdev;
  struct statfs system {};
  if (::statfs(path.c_str(), &system) != 0) return;
  const auto kind = static_cast<uint32_t>(system.f_type);
  file.on_network =
      std::find(kNetworkKinds.begin(), kNetworkKinds.end(), kind) != kNetworkKinds.end();
}

}  // namespace replpage
