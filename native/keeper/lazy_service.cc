#include "keeper/lazy_service.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/sys_error.h"
#include "core/uffd/process_memory_source.h"

namespace replpage {
namespace {

void announce(int eventfd) {
  const uint64_t one = 1;
  (void)::write(eventfd, &one, sizeof one);
}

LazyRanges passing_of(const LazyProcess& process, std::span<const LazySource> sources) {
  LazyRanges passing;
  if (process.ranges.empty()) return passing;
  const auto source = std::find_if(sources.begin(), sources.end(),
                                   [&](const LazySource& one) { return one.pid == process.pid; });
  if (source == sources.end()) {
    throw SysError("serve lazily without a source", ENOENT, on_pid(process.pid));
  }
  const auto number = static_cast<uint32_t>(source - sources.begin()) + kStoreSource + 1;
  for (const PageRange& range : process.ranges) passing.add(range, {number, range.start});
  return passing;
}

// Stands for the page store where there is none.
class NoStore final : public PageSource {
 public:
  void read(uint64_t, std::span<uint8_t>) override { throw SysError("read cold pages", ENODEV); }
  bool try_read(uint64_t, std::span<uint8_t>) override { return false; }
};

}  // namespace

std::unique_ptr<FaultServer> serve_lazily(std::vector<LazyProcess>& processes,
                                          std::vector<LazySource>& sources,
                                          std::unique_ptr<PageSource> store, const UniqueFd& news,
                                          const cpu_set_t& background) {
  std::vector<FaultServer::Served> served;
  for (LazyProcess& process : processes) {
    LazyRanges passing = passing_of(process, sources);
    if (!store && !process.cold.empty()) {
      throw SysError("serve cold pages without a page store", ENODEV, on_pid(process.pid));
    }
    served.push_back({.uffd = std::move(process.uffd),
                      .missing = {std::move(passing), std::move(process.cold)}});
  }
  FaultServer::Sources all;
  if (!store) store = std::make_unique<NoStore>();
  all.push_back(std::move(store));
  for (LazySource& source : sources) {
    all.push_back(std::make_unique<ProcessMemorySource>(std::move(source.memory)));
  }
  const auto tell = [fd = news.get()] { announce(fd); };
  const auto end_group = [tell](const std::string&) {
    ::kill(-1, SIGKILL);  // all of the namespace but its pid 1
    tell();
  };
  return std::make_unique<FaultServer>(
      std::move(served), std::move(all),
      FaultServer::Events{.released = tell,
                          .drained = tell,
                          .lost = end_group,
                          .damaged = [tell](const std::string&) { tell(); }},
      background);
}

}  // namespace replpage
