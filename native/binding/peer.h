// Who is at the other end of a local socket, and what they may do.
#pragma once

#include <napi.h>

namespace replpage::binding {

// peerCredentials(fd) -> {pid, uid, gid}: SO_PEERCRED of unix(7).
Napi::Value peer_credentials(const Napi::CallbackInfo& info);

// mayTrace({pid, uid, gid}, targetPid) -> {allowed, reason?}: see core/base/caller_rights.h.
Napi::Value may_trace_process(const Napi::CallbackInfo& info);

}  // namespace replpage::binding
