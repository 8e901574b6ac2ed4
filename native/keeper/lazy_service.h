// Serves the missing pages of a promoted replica, and ends the group when that becomes impossible.
#pragma once

#include <memory>
#include <vector>

#include "core/base/unique_fd.h"
#include "core/restore/replica.h"
#include "core/uffd/fault_server.h"

namespace replpage {

// Starts serving, before the replica runs. When a source is lost every process of the namespace is
// killed at once, from the serving thread: a missing page is never read as zero. `news` (an
// eventfd) becomes readable when there is something new to ask the server for. `background`: see
// FaultServer. `store` may be null
// where no page is cold. Throws SysError when a process has no source.
std::unique_ptr<FaultServer> serve_lazily(std::vector<LazyProcess>& processes,
                                          std::vector<LazySource>& sources,
                                          std::unique_ptr<PageSource> store, const UniqueFd& news,
                                          const cpu_set_t& background);

}  // namespace replpage
