// The addon's exports: see src/native/binding.ts for their types.
#include <malloc.h>
#include <napi.h>

#include "binding/kernel_features.h"
#include "binding/native_group.h"
#include "binding/native_standby.h"
#include "binding/peer.h"
#include "binding/requirements.h"
#include "binding/restore.h"
#include "binding/service_address.h"
#include "binding/store_key.h"

namespace replpage::binding {
namespace {

// The lists of an epoch's pages take some MiB and come and go on many threads, each with an arena
// of its own. With thresholds that move by themselves (mallopt(3)) each arena keeps what it once
// had: 10 to 20 MiB for every group that there ever was.
void keep_little_memory() {
  ::mallopt(M_MMAP_THRESHOLD, 256 << 10);
  ::mallopt(M_TRIM_THRESHOLD, 128 << 10);
}

Napi::Object initialise(Napi::Env env, Napi::Object exports) {
  keep_little_memory();
  exports.Set("NativeGroup", NativeGroup::define(env));
  exports.Set("ServiceAddress", NativeServiceAddress::define(env));
  exports.Set("NativeStandby", NativeStandby::define(env));
  exports.Set("peerCredentials", Napi::Function::New(env, peer_credentials));
  exports.Set("mayTrace", Napi::Function::New(env, may_trace_process));
  exports.Set("findCheckpoint", Napi::Function::New(env, find_checkpoint));
  exports.Set("removeCheckpoints", Napi::Function::New(env, remove_found));
  exports.Set("restoreCheckpoint", Napi::Function::New(env, restore));
  exports.Set("gatherRequirements", Napi::Function::New(env, gather));
  exports.Set("checkRequirements", Napi::Function::New(env, check));
  exports.Set("storeKeyText", Napi::Function::New(env, store_key_text));
  exports.Set("probeKernel", Napi::Function::New(env, probe_kernel));
  return exports;
}

}  // namespace

NODE_API_MODULE(replpage, initialise)

}  // namespace replpage::binding
