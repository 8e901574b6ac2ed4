#include "binding/group_options.h"

namespace replpage::binding {
namespace {

Napi::TypeError wrong(const Napi::Object& object, const char* key, const char* type) {
  return Napi::TypeError::New(object.Env(), std::string("option ") + key + " must be " + type);
}

std::string text(const Napi::Object& object, const char* key) {
  const Napi::Value value = object.Get(key);
  if (!value.IsString()) throw wrong(object, key, "a string");
  return value.As<Napi::String>().Utf8Value();
}

uint64_t number(const Napi::Object& object, const char* key) {
  const Napi::Value value = object.Get(key);
  if (!value.IsNumber() || value.As<Napi::Number>().DoubleValue() < 0) {
    throw wrong(object, key, "a number of at least 0");
  }
  return static_cast<uint64_t>(value.As<Napi::Number>().DoubleValue());
}

std::vector<gid_t> group_list(const Napi::Object& object, const char* key) {
  const Napi::Value value = object.Get(key);
  if (!value.IsArray()) throw wrong(object, key, "an array");
  const auto list = value.As<Napi::Array>();
  std::vector<gid_t> groups;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    groups.push_back(list.Get(i).ToNumber().Uint32Value());
  }
  return groups;
}

// One of two words.
bool is_word(const Napi::Object& object, const char* key, const char* yes, const char* no) {
  const std::string word = text(object, key);
  if (word == yes) return true;
  if (word == no) return false;
  throw wrong(object, key, (std::string(yes) + " or " + no).c_str());
}

std::optional<TrackerKind> tracker(const Napi::Object& object) {
  const std::string word = text(object, "tracker");
  if (word == "auto") return std::nullopt;
  if (word == "uffd-wp") return TrackerKind::kUffdWp;
  if (word == "soft-dirty") return TrackerKind::kSoftDirty;
  throw wrong(object, "tracker", "auto, uffd-wp or soft-dirty");
}

}  // namespace

GroupOptions read_group_options(const Napi::Object& object) {
  GroupOptions options;
  options.name = text(object, "name");
  options.pid = static_cast<pid_t>(number(object, "pid"));
  options.start_time = std::strtoull(text(object, "startTime").c_str(), nullptr, 10);
  options.generation = number(object, "generation");
  options.keeper_path = text(object, "keeperPath");
  options.control_socket = text(object, "runtimeDir") + "/keepers/" + options.name + "." +
                           std::to_string(options.generation) + ".sock";
  options.spill_directory = text(object, "spillDir");
  if (!object.Get("stdio").IsNull()) options.stdio_path = text(object, "stdio");
  options.uid = static_cast<uid_t>(number(object, "uid"));
  options.gid = static_cast<gid_t>(number(object, "gid"));
  options.groups = group_list(object, "groups");
  options.attach_always = is_word(object, "attach", "always", "epochs");
  options.promote_on_exit = is_word(object, "onExit", "promote", "end");
  options.keep_files = is_word(object, "files", "keep", "refuse");
  options.retries_left = static_cast<int>(number(object, "retriesLeft"));
  options.crash_delay_us = number(object, "crashDelayMs") * 1000;
  options.freeze_deadline_us = number(object, "freezeDeadlineUs");
  options.max_pause_us = number(object, "maxPauseUs");
  options.staging_bytes_max = number(object, "stagingBytesMax");
  options.spill_bytes_max = number(object, "spillBytesMax");
  options.tracker = tracker(object);
  return options;
}

}  // namespace replpage::binding
