#include "core/group/group_freezer.h"

#include <algorithm>
#include <iterator>

#include "core/base/not_this_time.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

// Also after an exception.
class RunAgain {
 public:
  explicit RunAgain(GroupFreezer& freezer) : freezer_(freezer) {}
  ~RunAgain() { freezer_.let_run(); }
  RunAgain(const RunAgain&) = delete;
  RunAgain& operator=(const RunAgain&) = delete;

 private:
  GroupFreezer& freezer_;
};

bool passes(int error) { return error == EBUSY || error == ETIMEDOUT || error == ESRCH; }

}  // namespace

FreezeResult GroupFreezer::freeze(uint64_t deadline_us) {
  if (context_.dying) return {.frozen = false, .reason = "the primary is dying", .took_us = 0};
  TraceTree& tree = *context_.tree;
  if (tree.processes().empty()) {
    // Its number may be another's by now.
    const bool was_attached =
        context_.options.attach_always && context_.phase != GroupPhase::kStarting;
    if (context_.root_gone || was_attached)
      return {
          .frozen = false, .reason = "it has ended, or is not protected any more", .took_us = 0};
    tree.seize(context_.options.pid, context_.options.attach_always);
  }
  return tree.freeze(deadline_us);
}

void GroupFreezer::let_run() {
  if (context_.options.attach_always) {
    context_.tree->thaw();
  } else {
    context_.tree->detach();
  }
}

std::string GroupFreezer::while_stopped(uint64_t deadline_us, const std::function<void()>& work) {
  const FreezeResult frozen = freeze(deadline_us);
  if (context_.dying) return "the primary is dying";
  const RunAgain run_again(*this);
  if (!frozen.frozen) return frozen.reason;
  try {
    work();
    return {};
  } catch (const NotThisTime& reason) {
    return reason.what();
  } catch (const SysError& error) {
    if (!passes(error.error())) throw;
    return error.what();
  }
}

}  // namespace replpage
