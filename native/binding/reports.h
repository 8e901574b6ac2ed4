// Reports of the engine as JavaScript objects.
#pragma once

#include <napi.h>

#include "core/checkpoint/checkpoint_taker.h"
#include "core/group/group_types.h"
#include "core/store/checkpoint_manifest.h"
#include "core/trace/trace_tree.h"

namespace replpage::binding {

Napi::Object to_object(Napi::Env env, const StartReport& report);
Napi::Object to_object(Napi::Env env, const EpochStats& stats);
Napi::Object to_object(Napi::Env env, const PagingReport& report);
Napi::Array to_array(Napi::Env env, const std::vector<InspectedMapping>& mappings);
Napi::Object to_object(Napi::Env env, const PromotionReport& report, const std::string& socket);
Napi::Object to_object(Napi::Env env, const CheckpointReport& report);
Napi::Object to_object(Napi::Env env, const std::string& id, const CheckpointManifest& manifest);
Napi::Object to_object(Napi::Env env, const TraceCounters& counters);
Napi::Object to_object(Napi::Env env, const ReplicaParts& parts);
const char* name_of(DeathCause cause);

}  // namespace replpage::binding
