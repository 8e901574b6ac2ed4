#include "binding/reports.h"

#include <cstdio>

namespace replpage::binding {
namespace {

// Counts and microseconds stay far below 2^53.
class ObjectBuilder {
 public:
  explicit ObjectBuilder(Napi::Env env) : env_(env), object_(Napi::Object::New(env)) {}
  ObjectBuilder& number(const char* key, uint64_t value) {
    object_.Set(key, Napi::Number::New(env_, static_cast<double>(value)));
    return *this;
  }
  ObjectBuilder& flag(const char* key, bool value) {
    object_.Set(key, Napi::Boolean::New(env_, value));
    return *this;
  }
  ObjectBuilder& text(const char* key, const std::string& value) {
    object_.Set(key, Napi::String::New(env_, value));
    return *this;
  }
  [[nodiscard]] Napi::Object done() const { return object_; }

 private:
  Napi::Env env_;
  Napi::Object object_;
};

std::string hex_of(uint64_t number) {
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
  return text;
}

Napi::Array to_array(Napi::Env env, const std::vector<uint64_t>& values) {
  Napi::Array array = Napi::Array::New(env, values.size());
  for (uint32_t i = 0; i < values.size(); ++i) {
    array.Set(i, Napi::Number::New(env, static_cast<double>(values[i])));
  }
  return array;
}

const char* name_of(StoreState state) {
  switch (state) {
    case StoreState::kOpening:
      return "opening";
    case StoreState::kOk:
      return "ok";
    case StoreState::kFull:
      return "full";
    case StoreState::kHung:
      return "hung";
    case StoreState::kFailing:
      return "failing";
  }
  return "failing";
}

const char* name_of(ReplicaState state) {
  switch (state) {
    case ReplicaState::kBuilding:
      return "building";
    case ReplicaState::kJoining:
      return "joining";
    case ReplicaState::kInSync:
      return "in sync";
    case ReplicaState::kOut:
    case ReplicaState::kDrilling:
      return "out";
  }
  return "out";
}

}  // namespace

Napi::Object to_object(Napi::Env env, const StartReport& report) {
  Napi::Object object =
      ObjectBuilder(env)
          .number("epoch", report.epoch)
          .text("tracker", report.tracker == TrackerKind::kUffdWp ? "uffd-wp" : "soft-dirty")
          .number("copiedBytes", report.copied_bytes)
          .number("copyUs", report.copy_us)
          .done();
  Napi::Array warnings = Napi::Array::New(env, report.warnings.size());
  for (uint32_t i = 0; i < report.warnings.size(); ++i) {
    warnings.Set(i, Napi::String::New(env, report.warnings[i]));
  }
  object.Set("warnings", warnings);
  return object;
}

Napi::Object to_object(Napi::Env env, const EpochStats& stats) {
  Napi::Object object = ObjectBuilder(env)
                            .number("epoch", stats.epoch)
                            .number("pauseUs", stats.pause_us)
                            .number("throttledUs", stats.throttled_us)
                            .number("copyUs", stats.copy_us)
                            .number("commitUs", stats.commit_us)
                            .number("cpuUs", stats.cpu_us)
                            .number("dirtyPages", stats.dirty_pages)
                            .number("zeroPages", stats.zero_pages)
                            .number("bytes", stats.bytes)
                            .number("precopyRounds", stats.precopy_rounds)
                            .flag("abandoned", stats.abandoned)
                            .number("mappedBytes", stats.mapped_bytes)
                            .number("primaryBytes", stats.primary_bytes)
                            .number("residentBytes", stats.resident_bytes)
                            .number("coldBytes", stats.cold_bytes)
                            .number("threads", stats.threads)
                            .number("processes", stats.processes)
                            .done();
  if (stats.abandoned) object.Set("reason", Napi::String::New(env, stats.reason));
  return object;
}

Napi::Object to_object(Napi::Env env, const PagingReport& report) {
  Napi::Object object = ObjectBuilder(env)
                            .text("tracker", report.tracker)
                            .number("samples", report.samples)
                            .number("sampleUs", report.sample_us)
                            .number("periodUs", report.period_us)
                            .number("residentBytes", report.resident_bytes)
                            .number("coldBytes", report.cold_bytes)
                            .number("absentBytes", report.absent_bytes)
                            .number("pendingBytes", report.pending_bytes)
                            .number("candidateBytes", report.candidate_bytes)
                            .number("tableBytes", report.table_bytes)
                            .text("store", name_of(report.store))
                            .text("trouble", report.trouble)
                            .number("storeBytes", report.store_bytes)
                            .number("storeSegments", report.store_segments)
                            .number("writtenBytes", report.written_bytes)
                            .number("evictedBytes", report.evicted_bytes)
                            .number("broughtBackBytes", report.brought_back_bytes)
                            .number("movedBytes", report.moved_bytes)
                            .number("pagerCpuUs", report.pager_cpu_us)
                            .number("pagerPid", static_cast<uint64_t>(report.pager_pid))
                            .done();
  object.Set("sampleShare", Napi::Number::New(env, report.sample_share));
  object.Set("ages", to_array(env, report.ages));
  object.Set("touchedAgain", to_array(env, report.touched_again));
  return object;
}

Napi::Array to_array(Napi::Env env, const std::vector<InspectedMapping>& mappings) {
  Napi::Array list = Napi::Array::New(env, mappings.size());
  for (uint32_t i = 0; i < mappings.size(); ++i) {
    const InspectedMapping& mapping = mappings[i];
    Napi::Array cells = Napi::Array::New(env, mapping.cells.size());
    for (uint32_t c = 0; c < mapping.cells.size(); ++c) {
      const PageCounts& counts = mapping.cells[c];
      cells.Set(c, ObjectBuilder(env)
                       .number("hot", counts.hot)
                       .number("warm", counts.warm)
                       .number("cold", counts.cold)
                       .number("absent", counts.absent)
                       .done());
    }
    Napi::Object object = ObjectBuilder(env)
                              .number("pid", static_cast<uint64_t>(mapping.pid))
                              .number("start", mapping.range.start)
                              .number("end", mapping.range.end)
                              .text("kind", mapping.is_stack ? "stack" : "anonymous")
                              .text("path", mapping.name)
                              .done();
    object.Set("cells", cells);
    list.Set(i, object);
  }
  return list;
}

Napi::Object to_object(Napi::Env env, const PromotionReport& report, const std::string& socket) {
  return ObjectBuilder(env)
      .number("epoch", report.epoch)
      .number("pid", static_cast<uint64_t>(report.pid))
      .number("hostPid", static_cast<uint64_t>(report.host_pid))
      .flag("exact", report.exact)
      .number("decisionToRunUs", report.decision_to_run_us)
      .number("deathToRunUs", report.death_to_run_us)
      .number("lazyPages", report.lazy_pages)
      .text("whyNotExact", report.why_not_exact)
      .text("node", report.node)
      .text("keeperSocket", socket)
      .done();
}

Napi::Object to_object(Napi::Env env, const CheckpointReport& report) {
  return ObjectBuilder(env)
      .text("id", report.id)
      .number("epoch", report.epoch)
      .number("writtenBytes", report.written_bytes)
      .number("coldBytes", report.cold_bytes)
      .number("storedBytes", report.stored_bytes)
      .done();
}

Napi::Object to_object(Napi::Env env, const std::string& id, const CheckpointManifest& manifest) {
  return ObjectBuilder(env)
      .text("id", id)
      .text("name", manifest.name)
      .text("groupId", hex_of(manifest.group_id))
      .number("epoch", manifest.epoch)
      .number("takenMs", manifest.taken_ms)
      .number("uid", manifest.uid)
      .number("gid", manifest.gid)
      .text("options", manifest.options)
      .text("bootId", manifest.boot_id)
      .number("hostPid", static_cast<uint64_t>(manifest.host_pid))
      .text("startTime", std::to_string(manifest.start_time))
      .number("coldBytes", manifest.cold_pages * kPageSize)
      .done();
}

Napi::Object to_object(Napi::Env env, const TraceCounters& counters) {
  return ObjectBuilder(env)
      .number("signals", counters.signals)
      .number("clones", counters.clones)
      .number("forks", counters.forks)
      .number("execs", counters.execs)
      .number("exits", counters.exits)
      .number("freezes", counters.freezes)
      .number("abandoned", counters.abandoned)
      .done();
}

Napi::Object to_object(Napi::Env env, const ReplicaParts& parts) {
  Napi::Array replicas = Napi::Array::New(env, parts.replicas.size());
  for (uint32_t i = 0; i < parts.replicas.size(); ++i) {
    const ReplicaView& replica = parts.replicas[i];
    replicas.Set(i, ObjectBuilder(env)
                        .text("node", replica.node)
                        .text("state", name_of(replica.state))
                        .number("epoch", replica.epoch)
                        .number("residentBytes", replica.resident_bytes)
                        .done());
  }
  Napi::Object object = ObjectBuilder(env)
                            .number("holderPid", static_cast<uint64_t>(parts.holder_pid))
                            .number("stagingBytes", parts.staging_bytes)
                            .done();
  object.Set("replicas", replicas);
  return object;
}

const char* name_of(DeathCause cause) {
  switch (cause) {
    case DeathCause::kSigkill:
      return "sigkill";
    case DeathCause::kSignal:
      return "signal";
    case DeathCause::kCrash:
      return "crash";
    case DeathCause::kExit:
      return "exit";
  }
  return "exit";
}

}  // namespace replpage::binding
