#include "keeper/lazy_service.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/sys_error.h"

namespace replpage {
namespace {

void announce(int eventfd) {
  const uint64_t one = 1;
  (void)::write(eventfd, &one, sizeof one);
}

}  // namespace

std::unique_ptr<FaultServer> serve_lazily(std::vector<LazyProcess>& processes,
                                          std::vector<LazySource>& sources, const UniqueFd& news) {
  std::vector<FaultServer::Served> served;
  for (LazyProcess& process : processes) {
    const auto source = std::find_if(sources.begin(), sources.end(),
                                     [&](const LazySource& one) { return one.pid == process.pid; });
    if (source == sources.end()) {
      throw SysError("serve lazily without a source", ENOENT, on_pid(process.pid));
    }
    served.push_back({.uffd = Uffd(std::move(process.uffd)),
                      .ranges = std::move(process.ranges),
                      .source = static_cast<size_t>(source - sources.begin())});
  }
  std::vector<UniqueFd> memories;
  for (LazySource& source : sources) memories.push_back(std::move(source.memory));
  const int fd = news.get();
  return std::make_unique<FaultServer>(
      std::move(served), std::move(memories),
      FaultServer::Events{.drained = [fd] { announce(fd); },
                          .lost =
                              [fd](const std::string&) {
                                ::kill(-1, SIGKILL);  // all of the namespace but its pid 1
                                announce(fd);
                              }});
}

}  // namespace replpage
