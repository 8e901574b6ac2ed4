#include "core/base/kernel_features.h"

#include <sys/wait.h>

#include <cerrno>
#include <set>

#include "core/memory/write_protect_uffd.h"
#include "test/test.h"

namespace replpage {
namespace {

TEST(kernel_features_have_names_and_agree_with_the_trackers) {
  std::set<std::string> names;
  bool pagemap_scan = false;
  for (const KernelFeature& feature : probe_kernel_features()) {
    CHECK(names.insert(feature.name).second);
    const bool* flag = std::get_if<bool>(&feature.value);
    if (flag != nullptr && feature.name == "pagemapScan") pagemap_scan = *flag;
  }
  CHECK(names.size() >= 14);
  if (WriteProtectUffd::supported()) CHECK(pagemap_scan);
}

TEST(probing_leaves_no_child_behind) {
  probe_kernel_features();
  CHECK(::waitpid(-1, nullptr, __WALL | WNOHANG) <= 0);
}

}  // namespace
}  // namespace replpage
