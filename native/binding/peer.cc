#include "binding/peer.h"

#include <sys/socket.h>

#include <sstream>

#include "binding/errors.h"
#include "core/base/caller_rights.h"
#include "core/base/procfs.h"
#include "core/base/sys_error.h"

namespace replpage::binding {
namespace {

std::vector<gid_t> groups_of(int pid) {
  std::vector<gid_t> groups;
  const auto status = read_proc("/proc/" + std::to_string(pid) + "/status");
  if (!status) return groups;
  const auto field = field_of(*status, "Groups");
  if (!field) return groups;
  std::istringstream words{std::string(*field)};
  for (gid_t group = 0; words >> group;) groups.push_back(group);
  return groups;
}

}  // namespace

Napi::Value peer_credentials(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = info[0].ToNumber().Int32Value();
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    throw to_error(env, std::make_exception_ptr(SysError::from_errno("getsockopt SO_PEERCRED")));
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("pid", static_cast<double>(peer.pid));
  result.Set("uid", static_cast<double>(peer.uid));
  result.Set("gid", static_cast<double>(peer.gid));
  return result;
}

Napi::Value may_trace_process(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const Napi::Object caller = info[0].ToObject();
  const int target = info[1].ToNumber().Int32Value();
  CallerRights rights;
  rights.uid = caller.Get("uid").ToNumber().Uint32Value();
  rights.gid = caller.Get("gid").ToNumber().Uint32Value();
  rights.groups = groups_of(caller.Get("pid").ToNumber().Int32Value());
  Napi::Object result = Napi::Object::New(env);
  try {
    const bool allowed = may_trace(target, rights);
    result.Set("allowed", allowed);
    if (!allowed) {
      result.Set("reason", "the kernel does not let user " + std::to_string(rights.uid) +
                               " trace process " + std::to_string(target));
    }
  } catch (...) {
    throw to_error(env, std::current_exception());
  }
  return result;
}

}  // namespace replpage::binding
