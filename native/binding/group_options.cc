#include "binding/group_options.h"

#include <algorithm>

#include "core/peer/remote_keeper.h"

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

std::optional<AccessTrackerKind> access_tracker(const Napi::Object& object) {
  const std::string word = text(object, "accessTracker");
  if (word == "auto") return std::nullopt;
  for (const AccessTrackerKind kind : {AccessTrackerKind::kPageWalk, AccessTrackerKind::kIdleBitmap,
                                       AccessTrackerKind::kWriteRecency}) {
    if (word == name_of(kind)) return kind;
  }
  throw wrong(object, "accessTracker", "auto, page-walk, idle-bitmap or write-recency");
}

// What protecting a group and bringing one back have in common.
void read_replica(const Napi::Object& object, ReplicaOptions& options) {
  options.name = text(object, "name");
  options.generation = number(object, "generation");
  options.keeper_path = text(object, "keeperPath");
  options.control_socket = text(object, "runtimeDir") + "/keepers/" + options.name + "." +
                           std::to_string(options.generation) + ".sock";
  options.spill_directory = text(object, "spillDir");
  if (!object.Get("stdio").IsNull()) options.stdio_path = text(object, "stdio");
  options.uid = static_cast<uid_t>(number(object, "uid"));
  options.gid = static_cast<gid_t>(number(object, "gid"));
  options.groups = group_list(object, "groups");
  options.keep_files = is_word(object, "files", "keep", "refuse");
  if (!object.Get("vip").IsNull()) options.service_address = text(object, "vip");
  options.staging_bytes_max = number(object, "stagingBytesMax");
  options.spill_bytes_max = number(object, "spillBytesMax");
}

std::shared_ptr<ReplicaPlace> read_place(const Napi::Object& object, const ReplicaOptions& group,
                                         pid_t primary) {
  return std::make_shared<RemoteKeeper>(
      RemotePlace{.host = text(object, "host"),
                  .port = static_cast<uint16_t>(number(object, "port")),
                  .node = text(object, "node"),
                  .token = text(object, "token"),
                  .group = group.name,
                  .generation = group.generation,
                  .primary = primary,
                  .credentials = read_credentials(object.Get("credentials").As<Napi::Object>())});
}

PagingOptions read_paging(const Napi::Object& object) {
  PagingOptions options;
  options.pager_path = text(object, "pagerPath");
  options.store = text(object, "store");
  options.key_path = text(object, "keyPath");
  options.group_id = std::strtoull(text(object, "groupId").c_str(), nullptr, 16);
  options.store_bytes_max = number(object, "storeBytesMax");
  options.cold_after_us = number(object, "coldAfterMs") * 1000;
  options.must_open = object.Get("mustOpen").ToBoolean().Value();
  options.as_owner = object.Get("asOwner").ToBoolean().Value();
  options.allow_memory_file_systems = object.Get("allowMemoryFileSystems").ToBoolean().Value();
  options.tracker = access_tracker(object);
  return options;
}

}  // namespace

ReplicaHome read_home(const Napi::Object& object, const ReplicaOptions& group, pid_t primary) {
  ReplicaHome home{.node = text(object, "node"), .place = nullptr};
  const Napi::Value place = object.Get("place");
  if (!place.IsNull()) home.place = read_place(place.As<Napi::Object>(), group, primary);
  return home;
}

NodeCredentials read_credentials(const Napi::Object& object) {
  return {.cluster = text(object, "cluster"),
          .certificate = text(object, "certificate"),
          .private_key = text(object, "privateKey"),
          .ca = text(object, "ca")};
}

StandbyOptions read_standby_options(const Napi::Object& object) {
  StandbyOptions options;
  read_replica(object, options);
  options.drill = object.Get("drill").ToBoolean().Value();
  options.address_comes = !options.drill;
  const auto files = object.Get("peerFiles").As<Napi::Array>();
  for (uint32_t i = 0; i < files.Length(); ++i) {
    const auto file = files.Get(i).As<Napi::Object>();
    bool whole = false;
    options.files.push_back({.path = text(file, "path"),
                             .copy = text(file, "copy"),
                             .inode = file.Get("inode").As<Napi::BigInt>().Uint64Value(&whole),
                             .on_network = file.Get("onNetwork").ToBoolean(),
                             .written = file.Get("written").ToBoolean()});
  }
  return options;
}

GroupOptions read_group_options(const Napi::Object& object) {
  GroupOptions options;
  read_replica(object, options);
  options.pid = static_cast<pid_t>(number(object, "pid"));
  options.start_time = std::strtoull(text(object, "startTime").c_str(), nullptr, 10);
  options.attach_always = is_word(object, "attach", "always", "epochs");
  options.promote_on_exit = is_word(object, "onExit", "promote", "end");
  options.retries_left = static_cast<int>(number(object, "retriesLeft"));
  options.crash_delay_us = number(object, "crashDelayMs") * 1000;
  options.freeze_deadline_us = number(object, "freezeDeadlineUs");
  options.max_pause_us = number(object, "maxPauseUs");
  options.tracker = tracker(object);
  if (!object.Get("paging").IsNull()) {
    options.paging = read_paging(object.Get("paging").As<Napi::Object>());
  }
  options.homes.clear();
  const auto homes = object.Get("homes").As<Napi::Array>();
  for (uint32_t i = 0; i < homes.Length(); ++i) {
    options.homes.push_back(read_home(homes.Get(i).As<Napi::Object>(), options, options.pid));
  }
  options.records_outs = object.Get("recordsOuts").ToBoolean().Value();
  return options;
}

PagingOrder read_paging_order(const Napi::Object& object) {
  return {.evict_age = static_cast<uint8_t>(std::min<uint64_t>(number(object, "evictAge"), 255)),
          .evict_pages_max = number(object, "evictPagesMax"),
          .bring_back_age =
              static_cast<uint8_t>(std::min<uint64_t>(number(object, "bringBackAge"), 255)),
          .bring_back_pages_max = number(object, "bringBackPagesMax"),
          .sample_now = object.Get("sampleNow").ToBoolean().Value()};
}

CheckpointRequest read_checkpoint_request(const Napi::Object& object) {
  return {.store = read_paging(object.Get("store").As<Napi::Object>()),
          .options = text(object, "options"),
          .keep = object.Get("keep").ToBoolean().Value()};
}

CheckpointPlace read_checkpoint_place(const Napi::Object& object) {
  CheckpointPlace place{
      .pager_path = text(object, "pagerPath"),
      .store = text(object, "store"),
      .name = text(object, "name"),
      .id = text(object, "id"),
      .key_path = text(object, "keyPath"),
      .key_text = text(object, "keyText"),
      .rights = std::nullopt,
      .allow_memory_file_systems = object.Get("allowMemoryFileSystems").ToBoolean().Value()};
  if (object.Get("asOwner").ToBoolean().Value()) {
    place.rights = CallerRights{.uid = static_cast<uid_t>(number(object, "uid")),
                                .gid = static_cast<gid_t>(number(object, "gid")),
                                .groups = group_list(object, "groups")};
  }
  return place;
}

RestoreOptions read_restore_options(const Napi::Object& object) {
  RestoreOptions options;
  read_replica(object, options);
  options.place = read_checkpoint_place(object.Get("place").As<Napi::Object>());
  return options;
}

}  // namespace replpage::binding
