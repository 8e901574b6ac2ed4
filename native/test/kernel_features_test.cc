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
    std::string text = feature.name + " ";
    if (const bool* flag = std::get_if<bool>(&feature.value)) {
      text += *flag ? "yes" : "no";
      if (feature.name == "pagemapScan") pagemap_scan = *flag;
    } else {
      text += std::get<std::string>(feature.value);
    }
    testing::note(text);
  }
  CHECK_EQUAL(names.size(), 9u);
  if (WriteProtectUffd::supported()) CHECK(pagemap_scan);
}

TEST(probing_leaves_no_child_behind) {
  probe_kernel_features();
  CHECK(::waitpid(-1, nullptr, __WALL | WNOHANG) <= 0);
}

}  // namespace
}  // namespace replpage
