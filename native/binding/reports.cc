#include "binding/reports.h"

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
                            .number("threads", stats.threads)
                            .number("processes", stats.processes)
                            .done();
  if (stats.abandoned) object.Set("reason", Napi::String::New(env, stats.reason));
  return object;
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
      .text("keeperSocket", socket)
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
