// Native errors as JavaScript errors.
#pragma once

#include <napi.h>

#include <exception>

namespace replpage::binding {

// An Error with {code, errno, syscall, pid, address, path} as far as known; a RefusedError becomes
// {code: 'ERR_REFUSED', refusals: [{pid, object, kind, why}]}, a KeeperLost 'ERR_REPLICA_LOST'.
Napi::Error to_error(Napi::Env env, const std::exception_ptr& failure);

}  // namespace replpage::binding
