// Work that may wait, on a thread of its own, with a promise for its outcome.
#pragma once

#include <napi.h>

#include <functional>
#include <stop_token>

namespace replpage::binding {

// Makes the promise's value, in the main thread.
using MakeValue = std::function<Napi::Value(Napi::Env)>;

// What the work throws rejects the promise, as to_error() makes it. The end of the program waits
// for the work.
Napi::Value run_apart(Napi::Env env, std::function<MakeValue()> work);

// Work that ends soon after it is asked to stop, however long it would take: it does not keep a
// program that is about to end, which asks it.
Napi::Value run_apart(Napi::Env env, std::function<MakeValue(const std::stop_token&)> work);

}  // namespace replpage::binding
