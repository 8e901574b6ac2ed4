#include "binding/errors.h"

#include <cstdio>
#include <cstring>

#include "core/base/sys_error.h"
#include "core/group/group_types.h"
#include "core/link/keeper_lost.h"
#include "core/store/store_error.h"

namespace replpage::binding {
namespace {

Napi::Error make(Napi::Env env, const std::string& code, const std::string& message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, code));
  return error;
}

Napi::Error from_system(Napi::Env env, const SysError& failure) {
  const char* name = strerrorname_np(failure.error());
  Napi::Error error = make(env, name != nullptr ? name : "ERR_SYSTEM", failure.what());
  error.Set("errno", Napi::Number::New(env, failure.error()));
  error.Set("syscall", Napi::String::New(env, failure.operation()));
  const ErrorObject& object = failure.object();
  if (object.pid) error.Set("pid", Napi::Number::New(env, *object.pid));
  if (object.path) error.Set("path", Napi::String::New(env, *object.path));
  if (object.address) {
    char hex[32];
    std::snprintf(hex, sizeof hex, "0x%llx", static_cast<unsigned long long>(*object.address));
    error.Set("address", Napi::String::New(env, hex));
  }
  return error;
}

Napi::Error from_refusals(Napi::Env env, const RefusedError& refused) {
  Napi::Error error = make(env, "ERR_REFUSED", refused.what());
  Napi::Array list = Napi::Array::New(env, refused.refusals.size());
  for (uint32_t i = 0; i < refused.refusals.size(); ++i) {
    const Refusal& refusal = refused.refusals[i];
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("pid", Napi::Number::New(env, refusal.pid));
    entry.Set("object", Napi::String::New(env, refusal.object));
    entry.Set("kind", Napi::String::New(env, refusal.kind));
    entry.Set("why", Napi::String::New(env, refusal.why));
    list.Set(i, entry);
  }
  error.Set("refusals", list);
  return error;
}

}  // namespace

Napi::Error to_error(Napi::Env env, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const RefusedError& refused) {
    return from_refusals(env, refused);
  } catch (const SysError& error) {
    return from_system(env, error);
  } catch (const StoreError& error) {
    return make(env, "ERR_STORE", error.what());
  } catch (const KeeperLost& lost) {
    return make(env, "ERR_REPLICA_LOST", lost.what());
  } catch (const FormatError& damaged) {
    return make(env, "ERR_FORMAT", damaged.what());
  } catch (const std::exception& error) {
    return make(env, "ERR_NATIVE", error.what());
  } catch (...) {
    return make(env, "ERR_NATIVE", "unknown native failure");
  }
}

}  // namespace replpage::binding
